//! The whole server on a kernel that fails: at each call in turn, and at random over many seeds.
//!
//! Whatever fails, the server goes on: each client is answered rightly or loses its connection,
//! none is left waiting (the server's own time limits are far longer than a client's patience
//! here), and at the end every descriptor, page and allocation has been given back. FAULT_SECONDS
//! in the environment runs the seeds for longer, and FAULT_SEED begins with another one.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const kernel = @import("kernel_fixture.zig");
const fixture_module = @import("server_fixture.zig");
const static = @import("static.zig");
const stress = @import("server_stress_test.zig");
const Client = fixture_module.Client;
const Fixture = fixture_module.Fixture;
const Options = @import("server.zig").Options;

/// Longer than any client here waits, so that no deadline hides a connection that was forgotten.
const never_ms = 60_000;

const patient: Options = .{
    .threads = 2,
    .connections = 64,
    .body_bytes = 1024 * 1024,
    .body_memory_bytes = 20_000,
    .response_memory_bytes = 40_000,
    .head_timeout_ms = never_ms,
    .body_timeout_ms = never_ms,
    .keep_alive_timeout_ms = never_ms,
    .write_timeout_ms = never_ms,
    .queue_timeout_ms = never_ms,
    .drain_timeout_ms = never_ms,
};

/// A folder with two files that hold the pattern, and the table that serves them.
const Site = struct {
    folder: testing.TmpDir,
    path: [:0]const u8,
    tables: [1]static.Options,

    const file_bytes = 200_000;

    fn init(self: *Site) !void {
        self.folder = testing.tmpDir(.{});
        errdefer self.folder.cleanup();
        const bytes = try testing.allocator.alloc(u8, file_bytes);
        defer testing.allocator.free(bytes);
        fixture_module.fill_pattern(bytes, 0);
        try self.folder.dir.writeFile(.{ .sub_path = "pattern", .data = bytes });
        try self.folder.dir.writeFile(.{ .sub_path = "small", .data = bytes[0..500] });
        var storage: [std.fs.max_path_bytes]u8 = undefined;
        const path = try self.folder.dir.realpath(".", &storage);
        self.path = try testing.allocator.dupeZ(u8, path);
        self.tables = .{.{
            .route = "/files",
            .directory = self.path,
            .cache_control = "",
            .index = "",
            .fallthrough = false,
        }};
    }

    fn deinit(self: *Site) void {
        testing.allocator.free(self.path);
        self.folder.cleanup();
    }

    fn options(self: *const Site, given: Options) Options {
        var with_files = given;
        with_files.static = &self.tables;
        return with_files;
    }
};

fn number_of(name: []const u8, default: u64) u64 {
    const text = std.posix.getenv(name) orelse return default;
    return std.fmt.parseInt(u64, text, 10) catch default;
}

// ---- The start ---------------------------------------------------------------------------------

test "faults: a start that fails is an error and leaves nothing" {
    const mapped_before = kernel.mapped_bytes.load(.monotonic);
    var failed: u32 = 0;
    var site: Site = undefined;
    try site.init();
    defer site.deinit();
    const before = fixture_module.count_descriptors();
    for (0..6) |seed| {
        for (0..100) |number| {
            var plan: kernel.Plan = .{ .seed = seed, .only = number };
            failed += @intFromBool(try begin_and_end(site.options(patient), &plan));
            try testing.expectEqual(before, fixture_module.count_descriptors());
            try testing.expectEqual(mapped_before, kernel.mapped_bytes.load(.monotonic));
            if (plan.total_injected() == 0) break;
        } else return error.NeverWhole;
    }
    try testing.expect(failed > 30);
}

/// Whether the start failed.
fn begin_and_end(options: Options, plan: *kernel.Plan) !bool {
    kernel.arm(plan);
    defer kernel.arm(null);
    const fixture = Fixture.start(.{ .options = options }) catch |err| switch (err) {
        error.OutOfMemory, error.Unexpected => return true,
        else => return err,
    };
    kernel.arm(null);
    fixture.deinit();
    return false;
}

// ---- The end -----------------------------------------------------------------------------------

test "faults: the end is told even where its pipe takes nothing" {
    const fixture = try Fixture.serve(.{ .options = patient });
    defer fixture.deinit();
    var plan: kernel.Plan = .{ .seed = 5, .only = 0 };
    kernel.arm(&plan);
    fixture.server.stop();
    kernel.arm(null);
    try testing.expectEqual(1, plan.injected.get(.send).load(.monotonic));
    try fixture.expect_end(.stopped);
}

// ---- Each call of a visit ----------------------------------------------------------------------

const steps = .{
    ask,
    upload_chunks,
    upload_to_file,
    read_slowly,
    ask_of_old,
    ask_to_continue,
    ask_to_continue_chunked,
    ask_for_events,
    ask_for_files,
    ask_for_large_file,
};

/// One client does one thing of each kind; where the fault ends its connection it takes a new one.
fn visit_once(fixture: *Fixture) !void {
    inline for (steps) |step| {
        var client = try fixture.connect();
        defer client.close();
        step(&client) catch |err| switch (err) {
            error.Reset, error.Ended => {},
            else => return err,
        };
    }
}

fn expect_whole(client: *Client, length: usize) !void {
    const answer = try client.response();
    defer answer.deinit();
    switch (answer.status) {
        200 => {},
        // Of what was not there: a file, memory, descriptors, a temporary file, its space.
        404, 500, 503, 507 => return,
        else => return error.WrongStatus,
    }
    try testing.expectEqual(length, answer.body.len);
    for (answer.body, 0..) |byte, at| {
        if (byte != fixture_module.pattern_byte(at)) return error.SpoiledBody;
    }
}

fn ask(client: *Client) !void {
    try client.get("/large/100");
    try client.get("/large/200");
    try expect_whole(client, 100);
    try expect_whole(client, 200);
}

fn ask_of_old(client: *Client) !void {
    try client.send("GET /stream/3/9000 HTTP/1.0\r\n\r\n");
    try expect_whole(client, 27_000);
}

fn read_slowly(client: *Client) !void {
    try client.get("/own/8/30000");
    sys.sleep_ms(1);
    try expect_whole(client, 240_000);
}

fn ask_for_events(client: *Client) !void {
    try client.get("/suspend/4/100/1");
    try expect_whole(client, 400);
}

fn ask_for_files(client: *Client) !void {
    try client.get("/files/small");
    try client.get("/file/3000");
    try expect_whole(client, 500);
    try expect_whole(client, 3000);
}

fn ask_for_large_file(client: *Client) !void {
    try client.get("/files/pattern");
    try expect_whole(client, Site.file_bytes);
}

fn upload_chunks(client: *Client) !void {
    var body: [3000]u8 = undefined;
    fixture_module.fill_pattern(&body, 0);
    try client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nbb8\r\n");
    try client.send(body[0..1000]);
    try client.send(body[1000..]);
    try client.send("\r\n0\r\n\r\n");
    try expect_whole(client, body.len);
}

fn upload_to_file(client: *Client) !void {
    const body = try testing.allocator.alloc(u8, 60_000);
    defer testing.allocator.free(body);
    fixture_module.fill_pattern(body, 0);
    try client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n");
    try client.send(body);
    try expect_whole(client, body.len);
}

fn ask_to_continue(client: *Client) !void {
    var body: [500]u8 = undefined;
    fixture_module.fill_pattern(&body, 0);
    try client.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
        "Content-Length: 500\r\n\r\n");
    const interim = try client.response();
    defer interim.deinit();
    switch (interim.status) {
        100 => {},
        500, 503 => return,
        else => return error.WrongStatus,
    }
    try client.send(&body);
    try expect_whole(client, body.len);
}

fn ask_to_continue_chunked(client: *Client) !void {
    var body: [500]u8 = undefined;
    fixture_module.fill_pattern(&body, 0);
    try client.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
        "Transfer-Encoding: chunked\r\n\r\n");
    const interim = try client.response();
    defer interim.deinit();
    switch (interim.status) {
        100 => {},
        500, 503 => return,
        else => return error.WrongStatus,
    }
    try client.send("1f4\r\n");
    try client.send(&body);
    try client.send("\r\n0\r\n\r\n");
    try expect_whole(client, body.len);
}

/// A test without so many has shown nothing; a busy machine gets more time for them.
const faults_min = 20;

fn is_going_on(end_ms: u64, faults: u64) bool {
    const now_ms = sys.monotonic_ms();
    return now_ms < end_ms or (faults < faults_min and now_ms < end_ms + 30_000);
}

test "faults: any one call of a visit may fail" {
    const end_ms = sys.monotonic_ms() + 2 * number_of("FAULT_SECONDS", 1) * std.time.ms_per_s;
    var failed: u32 = 0;
    var site: Site = undefined;
    try site.init();
    defer site.deinit();
    var seed: u64 = number_of("FAULT_SEED", 0);
    while (is_going_on(end_ms, failed)) : (seed += 1) {
        // The calls differ from run to run, with the threads; each run begins where the last was.
        for (0..2000) |number| {
            var plan: kernel.Plan = .{ .seed = seed, .only = number };
            errdefer std.debug.print("seed {d}, call {d}\n", .{ seed, number });
            try serve_a_visit(site.options(patient), &plan);
            if (plan.total_injected() == 0) break;
            failed += 1;
            if (!is_going_on(end_ms, failed)) break;
        } else return error.NeverWhole;
    }
    try testing.expect(failed >= faults_min);
}

fn serve_a_visit(options: Options, plan: *kernel.Plan) !void {
    const fixture = try Fixture.serve(.{
        .options = options,
        .send_buffer_bytes = 8192,
        .plan = plan,
    });
    defer fixture.deinit();
    try visit_once(fixture);
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

// ---- At random, over seeds ---------------------------------------------------------------------

const visitors_max = 4;

fn serve_visitors(options: Options, plan: *kernel.Plan) !void {
    const fixture = try Fixture.serve(.{
        .options = options,
        .send_buffer_bytes = 8192,
        .plan = plan,
    });
    defer fixture.deinit();
    var visitors: [visitors_max]stress.Visitor = undefined;
    var threads: [visitors_max]std.Thread = undefined;
    for (&visitors, &threads, 0..) |*visitor, *thread, index| {
        visitor.* = .{
            .fixture = fixture,
            .random = .init(plan.seed * visitors_max + index),
            .tolerance = .faults,
            .has_files = true,
            .visits_max = 6,
        };
        thread.* = try std.Thread.spawn(.{}, stress.Visitor.run, .{visitor});
    }
    for (threads) |thread| thread.join();
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

fn over_seeds(options: Options, rates: std.enums.EnumFieldStruct(kernel.Call, u16, 0)) !void {
    const end_ms = sys.monotonic_ms() + number_of("FAULT_SECONDS", 1) * std.time.ms_per_s;
    var seed = number_of("FAULT_SEED", 1);
    var site: Site = undefined;
    try site.init();
    defer site.deinit();
    var injected: u64 = 0;
    while (is_going_on(end_ms, injected)) : (seed += 1) {
        var plan: kernel.Plan = .{ .seed = seed, .rates = .initDefault(0, rates) };
        errdefer std.debug.print("seed {d}\n", .{seed});
        try serve_visitors(site.options(options), &plan);
        injected += plan.total_injected();
    }
    try testing.expect(injected >= faults_min);
}

test "faults: short, interrupted and refused calls cost no response" {
    try over_seeds(patient, .{ .recv = 40, .send = 40, .send_file = 40, .poll = 100 });
}

test "faults: sockets, files and memory fail at random" {
    try over_seeds(patient, .{
        .recv = 20,
        .send = 20,
        .send_file = 100,
        .accept = 200,
        .find = 100,
        .stat = 100,
        .poll = 30,
        .watch = 60,
        .open = 200,
        .write_file = 200,
        .read_file = 200,
        .allocate = 30,
        .map_pages = 200,
    });
}

test "faults: without memory a request is refused or its connection closed" {
    try over_seeds(patient, .{ .allocate = 300, .map_pages = 500 });
}

test "faults: the same with room for few connections" {
    var options = patient;
    options.connections = 3;
    options.threads = 1;
    options.queue = 1;
    try over_seeds(options, .{ .recv = 20, .send = 20, .accept = 200, .poll = 200, .watch = 60 });
}

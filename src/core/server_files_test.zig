//! Files through the whole server: sent by a worker, by the poller, and to clients that are slow,
//! leave, or take nothing. See server_test.zig.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const static = @import("static.zig");
const fixture_module = @import("server_fixture.zig");
const Fixture = fixture_module.Fixture;
const Client = fixture_module.Client;
const Server = @import("server.zig").Server;
const Options = @import("server.zig").Options;

const gpa = testing.allocator;
const narrow = 4096;

const calm: Options = .{
    .threads = 2,
    .connections = 64,
    .drain_timeout_ms = fixture_module.patience_ms,
    .response_memory_bytes = 50_000,
};

/// A folder of files that hold the pattern, by their sizes, and a server for it.
const Site = struct {
    folder: testing.TmpDir,
    path: [:0]const u8,
    tables: [1]static.Options,
    fixture: *Fixture,

    const Sockets = enum { wide, narrow };

    fn serve(self: *Site, given: Options, fallthrough: bool, sockets: Sockets) !void {
        try self.start(given, fallthrough, sockets);
        errdefer self.deinit();
        try self.fixture.run();
    }

    /// Without its threads.
    fn start(self: *Site, given: Options, fallthrough: bool, sockets: Sockets) !void {
        self.folder = testing.tmpDir(.{});
        errdefer self.folder.cleanup();
        for ([_]usize{ 0, 5, 300, 40_000, 900_000, 5_000_000 }) |size| {
            var name: [32]u8 = undefined;
            const bytes = try gpa.alloc(u8, size);
            defer gpa.free(bytes);
            fixture_module.fill_pattern(bytes, 0);
            try self.folder.dir.writeFile(.{
                .sub_path = try std.fmt.bufPrint(&name, "{d}", .{size}),
                .data = bytes,
            });
        }
        var storage: [std.fs.max_path_bytes]u8 = undefined;
        self.path = try gpa.dupeZ(u8, try self.folder.dir.realpath(".", &storage));
        errdefer gpa.free(self.path);
        self.tables = .{.{
            .route = "/s",
            .directory = self.path,
            .cache_control = "",
            .index = "",
            .fallthrough = fallthrough,
        }};
        var options = given;
        options.static = &self.tables;
        self.fixture = try Fixture.start(.{
            .options = options,
            .send_buffer_bytes = if (sockets == .narrow) narrow else null,
        });
    }

    fn deinit(self: *Site) void {
        self.fixture.deinit();
        gpa.free(self.path);
        self.folder.cleanup();
    }
};

test "server: files between other responses on one connection" {
    var site: Site = undefined;
    try site.serve(calm, true, .wide);
    defer site.deinit();
    const fixture = site.fixture;
    var client = try fixture.connect();
    defer client.close();
    for (0..3) |_| {
        for ([_]usize{ 0, 5, 300, 40_000, 900_000, 5_000_000 }) |size| {
            var path: [32]u8 = undefined;
            try client.get(try std.fmt.bufPrint(&path, "/s/{d}", .{size}));
            try client.get("/small");
            try client.get("/s/unknown");
            try client.expect_pattern(size);
            try client.expect(200, "hello");
            try client.expect(404, "?");
        }
        for ([_]usize{ 1, 30_000, 60_000, 3_000_000 }) |size| {
            var path: [32]u8 = undefined;
            try client.get(try std.fmt.bufPrint(&path, "/file/{d}", .{size}));
            try client.get("/small");
            try client.expect_pattern(size);
            try client.expect(200, "hello");
        }
    }
    client.close();
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "server: a long pipeline of requests for files is answered in order" {
    var site: Site = undefined;
    try site.serve(calm, false, .wide);
    defer site.deinit();
    const fixture = site.fixture;
    var client = try fixture.connect();
    defer client.close();
    var text: std.ArrayList(u8) = .empty;
    defer text.deinit(gpa);
    const paths = [_][]const u8{ "/s/5", "/small", "/s/0", "/s/300", "/s/none" };
    // More than fits into the stack, if each were answered inside the one before.
    const count = 2000;
    for (0..count) |index| {
        try text.print(gpa, "GET {s} HTTP/1.1\r\nHost: a\r\n\r\n", .{paths[index % paths.len]});
    }
    const sender = try std.Thread.spawn(.{}, send_all, .{ &client, text.items });
    for (0..count) |index| switch (index % paths.len) {
        0 => try client.expect_pattern(5),
        1 => try client.expect(200, "hello"),
        2 => try client.expect_pattern(0),
        3 => try client.expect_pattern(300),
        else => try client.expect(404, "404 Not Found\n"),
    };
    sender.join();
    client.close();
    try fixture.finish();
}

/// A server whose poller the test turns itself, a client that pipelines and one that does not.
const Rivals = struct {
    site: Site,
    server: *Server,
    greedy: Client,
    other: Client,

    fn begin(self: *Rivals) !void {
        try self.site.start(calm, false, .wide);
        errdefer self.site.deinit();
        self.server = self.site.fixture.server;
        self.greedy = try self.site.fixture.connect();
        errdefer self.greedy.close();
        self.other = try self.site.fixture.connect();
    }

    fn deinit(self: *Rivals) void {
        self.other.close();
        self.greedy.close();
        self.site.deinit();
    }

    fn poll(self: *Rivals, times: usize) void {
        for (0..times) |_| self.server.poller.poll(false);
    }

    /// Asks as one that waits for its answer.
    fn ask_as_other(self: *Rivals) !void {
        try self.other.get("/s/300");
        while (!sys.may_be_ready(self.other.fd, .readable)) self.poll(1);
        try self.other.expect_pattern(300);
    }
};

test "server: a client that pipelines lets the others go first, and loses nothing by it alone" {
    var rivals: Rivals = undefined;
    try rivals.begin();
    defer rivals.deinit();
    const server = rivals.server;
    const count = 400;
    for (0..count) |_| try rivals.greedy.get("/s/5");
    rivals.poll(100);
    const before = server.counts().requests;
    try testing.expect(before > 0);

    const began_ns = sys.monotonic_ns();
    for (0..100) |_| try rivals.ask_as_other();
    const elapsed_ms = (sys.monotonic_ns() - began_ns) / std.time.ns_per_ms;
    const between = server.counts().requests - before - 100;
    try testing.expect(between <= elapsed_ms + 2);

    // One for each turn again, as soon as nobody else asks.
    sys.sleep_ms(2);
    rivals.poll(50);
    try testing.expect(server.counts().requests - before - 100 - between >= 49);
    while (server.counts().requests < count + 100) rivals.poll(1);
    for (0..count) |_| try rivals.greedy.expect_pattern(5);
}

test "server: a client that leaves while its next request lets others go first is not answered" {
    var rivals: Rivals = undefined;
    try rivals.begin();
    defer rivals.deinit();
    const server = rivals.server;
    for (0..50) |_| try rivals.greedy.get("/s/5");
    rivals.poll(10);
    try rivals.ask_as_other();
    try testing.expect(server.poller.pipelined != null);
    const before = server.counts().requests;
    rivals.greedy.reset();
    sys.sleep_ms(2);
    rivals.poll(20);
    try testing.expectEqual(before, server.counts().requests);
    try testing.expectEqual(1, server.counts().connections);
    try testing.expectEqual(null, server.poller.pipelined);
}

test "server: clients that all pipeline do not wait for one another" {
    var site: Site = undefined;
    try site.start(calm, false, .wide);
    defer site.deinit();
    const server = site.fixture.server;
    var clients: [4]Client = undefined;
    for (&clients) |*client| client.* = try site.fixture.connect();
    defer for (&clients) |*client| client.close();
    var asked_ns: u64 = 0;
    for (0..20) |round| {
        for (&clients) |*client| try client.send("GET /s/5 HTTP/1.1\r\nHost: a\r\n\r\n" ** 3);
        const before = server.counts().requests;
        while (server.counts().requests < before + 3 * clients.len) server.poller.poll(false);
        for (&clients) |*client| for (0..3) |_| try client.expect_pattern(5);
        // In the first round it cannot be known of any.
        if (round == 0) asked_ns = server.poller.asked_ns;
        try testing.expectEqual(asked_ns, server.poller.asked_ns);
    }
    try testing.expect(asked_ns > 0);
}

fn send_all(client: *Client, bytes: []const u8) void {
    client.send(bytes) catch {};
}

test "server: slow clients of files hold no thread, and no memory" {
    var site: Site = undefined;
    try site.serve(calm, false, .narrow);
    defer site.deinit();
    const fixture = site.fixture;
    const paths = [_][]const u8{ "/s/900000", "/file/900000" };
    var slow: [6]Client = undefined;
    for (&slow, 0..) |*client, index| {
        client.* = try fixture.connect_with(narrow);
        try client.get(paths[index % 2]);
    }
    defer for (&slow) |*client| client.close();
    try fixture.expect_app("parks", slow.len / 2);
    var fast = try fixture.connect();
    defer fast.close();
    for (0..20) |_| try fast.ask("/small", 200, "hello");
    for (&slow) |*client| try client.expect_pattern(900_000);
    for (&slow) |*client| try client.ask("/small", 200, "hello");
    for (&slow) |*client| client.close();
    fast.close();
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "server: a client that takes nothing of a file is given up, one that leaves at once" {
    var options = calm;
    options.write_timeout_ms = 300;
    var site: Site = undefined;
    try site.serve(options, false, .narrow);
    defer site.deinit();
    const fixture = site.fixture;
    for ([_]bool{ false, true }, 1..) |leaves, round| {
        for ([_][]const u8{ "/s/5000000", "/file/4000000" }) |path| {
            var client = try fixture.connect_with(narrow);
            defer client.close();
            try client.get(path);
            try fixture.expect_count(.connections, 1);
            if (path[1] == 'f') try fixture.expect_app("parks", @intCast(round));
            if (leaves) client.reset();
            try fixture.expect_count(.connections, 0);
            if (!leaves) try testing.expect(std.meta.isError(client.response()));
        }
    }
    try fixture.expect_app("abandoned", 2);
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "server: a file that becomes shorter ends the connection, not the process" {
    var site: Site = undefined;
    try site.serve(calm, false, .narrow);
    defer site.deinit();
    const fixture = site.fixture;
    var client = try fixture.connect_with(narrow);
    defer client.close();
    try client.get("/s/5000000");
    // The head has come, so the length is promised.
    try testing.expect(sys.wait_ready(client.fd, .readable, fixture_module.patience_ms));
    var file = try site.folder.dir.openFile("5000000", .{ .mode = .read_write });
    try file.setEndPos(10);
    file.close();
    try testing.expect(std.meta.isError(client.response()));
    client.close();
    try fixture.expect_count(.connections, 0);
    // The same for one of the application's, which says more than it has.
    for ([_][]const u8{ "/file/100/0/5", "/file/3000000/0/5" }) |path| {
        var other = try fixture.connect();
        defer other.close();
        try other.get(path);
        try testing.expectError(error.Ended, other.response());
    }
    try fixture.finish();
}

test "server: connections end after files as after anything" {
    var options = calm;
    options.requests_per_connection = 3;
    var site: Site = undefined;
    try site.serve(options, false, .wide);
    defer site.deinit();
    const fixture = site.fixture;
    var client = try fixture.connect();
    defer client.close();
    for (0..3) |index| {
        try client.get("/s/40000");
        const answer = try client.response();
        defer answer.deinit();
        try testing.expectEqual(index == 2, answer.closes);
        try testing.expectEqual(40_000, answer.body.len);
    }
    try client.expect_end();
    var old = try fixture.connect();
    defer old.close();
    try old.send("GET /s/300 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    const kept = try old.response();
    defer kept.deinit();
    try testing.expectEqualStrings("keep-alive", kept.field("connection").?);
    try old.send("GET /s/300 HTTP/1.0\r\n\r\n");
    const last = try old.response();
    defer last.deinit();
    try testing.expect(last.closes);
    try old.expect_end();
    try fixture.expect_count(.requests, 5);
    try fixture.finish();
}

test "server: a request for a file may have a body" {
    var site: Site = undefined;
    try site.serve(calm, false, .wide);
    defer site.deinit();
    const fixture = site.fixture;
    var client = try fixture.connect();
    defer client.close();
    const get = "GET /s/300 HTTP/1.1\r\nHost: a\r\n";
    try client.send(get ++ "Content-Length: 5\r\n\r\nabcde" ++ get ++ "\r\n");
    try client.expect_pattern(300);
    try client.expect_pattern(300);
    // Nobody will read what this client asks leave to send.
    try client.send(get ++ "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    const answer = try client.response();
    defer answer.deinit();
    try testing.expectEqual(200, answer.status);
    try testing.expect(answer.closes);
    try client.expect_end();
    client.close();
    try fixture.finish();
}

test "server: files are answered while a handler keeps the GIL" {
    var site: Site = undefined;
    try site.serve(calm, true, .wide);
    defer site.deinit();
    const fixture = site.fixture;
    var stuck = try fixture.connect();
    defer stuck.close();
    try stuck.get("/hold");
    try fixture.expect_app("at_gate", 1);
    var client = try fixture.connect();
    defer client.close();
    for (0..10) |_| {
        try client.get("/s/900000");
        try client.expect_pattern(900_000);
    }
    fixture.app.gate.set();
    try stuck.expect(200, "held");
    stuck.close();
    client.close();
    try fixture.finish();
}

test "server: a drain lets a file end, and says that the connection does" {
    var site: Site = undefined;
    try site.serve(calm, false, .narrow);
    defer site.deinit();
    const fixture = site.fixture;
    var client = try fixture.connect_with(narrow);
    defer client.close();
    try client.get("/s/900000");
    try client.get("/s/300");
    try testing.expect(sys.wait_ready(client.fd, .readable, fixture_module.patience_ms));
    fixture.server.drain();
    for (0..fixture_module.patience_ms) |_| {
        if (fixture.server.draining.load(.acquire)) break;
        sys.sleep_ms(1);
    } else return error.NotDraining;
    try client.expect_pattern(900_000);
    const answer = try client.response();
    defer answer.deinit();
    try testing.expectEqual(200, answer.status);
    try testing.expect(answer.closes);
    try client.expect_end();
    client.close();
    try fixture.expect_end(.drained);
    try fixture.expect_no_descriptors();
}

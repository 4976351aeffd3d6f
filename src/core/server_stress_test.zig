//! Clients that do anything at random, for a few seconds, at a server whose every limit is small.
//!
//! What each client may see is checked where it is certain (a response that came whole is right);
//! at the end everything must have been given back. The seed is fixed; the interleaving is not.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const fixture_module = @import("server_fixture.zig");
const Client = fixture_module.Client;
const Fixture = fixture_module.Fixture;
const Options = @import("server.zig").Options;

const duration_ms = 1500;
/// Of all visitors; fewer would show nothing.
const answered_min = 50;

const Shape = struct {
    options: Options,
    tolerance: Tolerance,
};

/// What may happen to a client that gave no cause for it.
pub const Tolerance = enum {
    nothing,
    /// It is refused, closed or timed out: the limits are small.
    refusals,
    /// It is refused or closed: the kernel fails. It is never left waiting.
    faults,

    fn allows(self: Tolerance, err: anyerror) bool {
        return switch (err) {
            error.Reset, error.Ended => self != .nothing,
            error.TimedOut => self == .refusals,
            else => false,
        };
    }

    fn allows_status(self: Tolerance, status: u16) bool {
        return switch (self) {
            .nothing => false,
            .refusals => true,
            // Of what was not there: a file, memory, descriptors, a temporary file, its space.
            .faults => switch (status) {
                404, 500, 503, 507 => true,
                else => false,
            },
        };
    }
};

/// What a client thread works with.
pub const Visitor = struct {
    fixture: *Fixture,
    random: std.Random.DefaultPrng,
    tolerance: Tolerance,
    /// There are /files, as faults_test.zig has them.
    has_files: bool = false,
    visits_max: u32 = std.math.maxInt(u32),
    answered: u32 = 0,
    answered_min: u32 = 0,

    pub fn run(self: *Visitor) void {
        const end = sys.monotonic_ms() + duration_ms;
        for (0..self.visits_max) |_| {
            const now = sys.monotonic_ms();
            // A busy machine gets more time.
            const is_poor = self.answered < self.answered_min and now < end + 20_000;
            if (now >= end and !is_poor) return;
            self.visit() catch |err| {
                if (self.tolerance.allows(err)) continue;
                std.debug.print("stress: {t}\n", .{err});
                _ = self.fixture.app.faults.fetchAdd(1, .monotonic);
            };
        }
    }

    fn number(self: *Visitor, below: u32) u32 {
        return self.random.random().uintLessThan(u32, below);
    }

    fn visit(self: *Visitor) !void {
        const is_narrow = self.number(3) == 0;
        var client = try self.fixture.connect_with(if (is_narrow) 4096 else null);
        defer client.close();
        for (0..1 + self.number(6)) |_| {
            switch (self.number(12)) {
                0...2 => try self.ask(&client),
                3 => try self.pipeline(&client),
                4 => try self.upload(&client),
                5 => try self.take_slowly(&client),
                6 => try self.split(&client),
                7 => return self.leave(&client),
                8 => return self.talk_nonsense(&client),
                9 => return self.ask_of_old(&client),
                10 => return self.wait_for_continue(&client),
                else => sys.sleep_ms(self.number(8)),
            }
        }
    }

    /// A 503 is allowed where the server is overloaded; then the connection is over.
    fn take(self: *Visitor, client: *Client, length: ?usize) !void {
        const answer = try client.response();
        defer answer.deinit();
        if (self.tolerance.allows_status(answer.status)) {
            if (answer.status != 200) return error.Ended;
        }
        try testing.expectEqual(200, answer.status);
        self.answered += 1;
        const wanted = length orelse return;
        try testing.expectEqual(wanted, answer.body.len);
        for (answer.body, 0..) |byte, at| {
            try testing.expectEqual(fixture_module.pattern_byte(at), byte);
        }
    }

    fn path_of(self: *Visitor, storage: []u8, length: *?usize) ![]const u8 {
        const pieces = 1 + self.number(20);
        const size = if (self.number(2) == 0) self.number(500) else self.number(30_000);
        length.* = size * pieces;
        return switch (self.number(if (self.has_files) 11 else 10)) {
            8 => std.fmt.bufPrint(storage, "/suspend/{d}/{d}/{d}", .{
                pieces,
                size,
                1 + self.number(3),
            }),
            9 => blk: {
                length.* = size;
                break :blk std.fmt.bufPrint(storage, "/file/{d}", .{size});
            },
            10 => blk: {
                length.* = if (size < 500) 500 else 200_000;
                break :blk if (size < 500) "/files/small" else "/files/pattern";
            },
            // With pauses the monitor sends what was kept.
            0 => blk: {
                const pause_ms = self.number(2);
                break :blk std.fmt.bufPrint(storage, "/stream/{d}/{d}/{d}", .{
                    pieces,
                    size,
                    pause_ms,
                });
            },
            1 => std.fmt.bufPrint(storage, "/own/{d}/{d}", .{ pieces, size }),
            2 => std.fmt.bufPrint(storage, "/write/{d}/{d}", .{ pieces, size }),
            3 => blk: {
                length.* = size;
                break :blk std.fmt.bufPrint(storage, "/large/{d}", .{size});
            },
            4 => blk: {
                length.* = null;
                break :blk std.fmt.bufPrint(storage, "/sleep/{d}", .{self.number(4)});
            },
            5 => blk: {
                length.* = null;
                break :blk std.fmt.bufPrint(storage, "/spin/{d}", .{self.number(3)});
            },
            else => blk: {
                length.* = null;
                break :blk "/small";
            },
        };
    }

    fn ask(self: *Visitor, client: *Client) !void {
        var storage: [64]u8 = undefined;
        var length: ?usize = null;
        try client.get(try self.path_of(&storage, &length));
        try self.take(client, length);
    }

    fn pipeline(self: *Visitor, client: *Client) !void {
        var lengths: [12]?usize = undefined;
        const count = 1 + self.number(lengths.len);
        for (lengths[0..count]) |*length| {
            var storage: [64]u8 = undefined;
            try client.get(try self.path_of(&storage, length));
        }
        for (lengths[0..count]) |length| try self.take(client, length);
    }

    fn upload(self: *Visitor, client: *Client) !void {
        const gpa = testing.allocator;
        const body = try gpa.alloc(u8, self.number(60_000));
        defer gpa.free(body);
        fixture_module.fill_pattern(body, 0);
        var text: std.ArrayList(u8) = .empty;
        defer text.deinit(gpa);
        try text.appendSlice(gpa, "POST /echo HTTP/1.1\r\nHost: a\r\n");
        if (self.number(2) == 0) {
            try text.print(gpa, "Content-Length: {d}\r\n\r\n", .{body.len});
            try text.appendSlice(gpa, body);
        } else {
            try text.appendSlice(gpa, "Transfer-Encoding: chunked\r\n\r\n");
            var at: usize = 0;
            while (at < body.len) {
                const size = @min(body.len - at, 1 + self.number(9000));
                try text.print(gpa, "{x}\r\n{s}\r\n", .{ size, body[at..][0..size] });
                at += size;
            }
            try text.appendSlice(gpa, "0\r\n\r\n");
        }
        const at = self.number(@intCast(text.items.len));
        try client.send(text.items[0..at]);
        if (self.number(2) == 0) sys.sleep_ms(self.number(3));
        try client.send(text.items[at..]);
        try self.take(client, body.len);
    }

    fn take_slowly(self: *Visitor, client: *Client) !void {
        const length = 100_000 + self.number(400_000);
        var storage: [64]u8 = undefined;
        try client.get(try std.fmt.bufPrint(&storage, "/large/{d}", .{length}));
        sys.sleep_ms(self.number(15));
        try self.take(client, length);
    }

    fn split(self: *Visitor, client: *Client) !void {
        const text = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
        for (text, 0..) |_, at| {
            try client.send(text[at..][0..1]);
            if (self.number(40) == 0) std.Thread.sleep(200 * std.time.ns_per_us);
        }
        var body: [3]u8 = undefined;
        fixture_module.fill_pattern(&body, 0);
        try client.send(&body);
        try self.take(client, body.len);
    }

    /// As HTTP/1.0 has it: the end of the connection is the end of the body.
    fn ask_of_old(self: *Visitor, client: *Client) !void {
        const pieces = 1 + self.number(20);
        const size = 1 + self.number(20_000);
        var storage: [64]u8 = undefined;
        const text = "GET /stream/{d}/{d} HTTP/1.0\r\n\r\n";
        try client.send(try std.fmt.bufPrint(&storage, text, .{ pieces, size }));
        try self.take(client, pieces * size);
    }

    /// The body goes when the server has asked for it.
    fn wait_for_continue(self: *Visitor, client: *Client) !void {
        const gpa = testing.allocator;
        const body = try gpa.alloc(u8, 1 + self.number(40_000));
        defer gpa.free(body);
        fixture_module.fill_pattern(body, 0);
        var storage: [128]u8 = undefined;
        const text = "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
            "Content-Length: {d}\r\n\r\n";
        try client.send(try std.fmt.bufPrint(&storage, text, .{body.len}));
        const interim = try client.response();
        defer interim.deinit();
        if (interim.status != 100 and self.tolerance.allows_status(interim.status)) return;
        try testing.expectEqual(100, interim.status);
        try client.send(body);
        try self.take(client, body.len);
    }

    /// In the middle of whatever this begins.
    fn leave(self: *Visitor, client: *Client) !void {
        var storage: [64]u8 = undefined;
        var length: ?usize = null;
        for (0..1 + self.number(3)) |_| try client.get(try self.path_of(&storage, &length));
        switch (self.number(5)) {
            0 => try client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"),
            1 => try client.send("GET / HT"),
            2 => try client.get("/stream/50/20000"),
            3 => try client.get("/broken"),
            else => {},
        }
        if (self.number(2) == 0) sys.sleep_ms(self.number(5));
        switch (self.number(3)) {
            0 => client.reset(),
            1 => client.close(),
            else => client.half_close(),
        }
    }

    fn talk_nonsense(self: *Visitor, client: *Client) !void {
        const texts = [_][]const u8{
            "nonsense\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
        };
        try client.send(texts[self.number(texts.len)]);
        const answer = try client.response();
        defer answer.deinit();
        try testing.expect(answer.status == 400 or answer.status == 413 or answer.status == 503);
        if (self.number(2) == 0 and self.tolerance != .faults) try client.expect_end();
    }
};

fn stress(shape: Shape, seed: u64) !void {
    const fixture = try Fixture.serve(.{ .options = shape.options, .send_buffer_bytes = 8192 });
    defer fixture.deinit();
    var visitors: [8]Visitor = undefined;
    var threads: [visitors.len]std.Thread = undefined;
    for (&visitors, &threads, 0..) |*visitor, *thread, index| {
        visitor.* = .{
            .fixture = fixture,
            .random = .init(seed + index),
            .tolerance = shape.tolerance,
            .answered_min = answered_min / visitors.len + 1,
        };
        thread.* = try std.Thread.spawn(.{}, Visitor.run, .{visitor});
    }
    for (threads) |thread| thread.join();
    var answered: u32 = 0;
    for (visitors) |visitor| answered += visitor.answered;
    try testing.expect(answered > answered_min);
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

pub const base: Options = .{
    .threads = 5,
    .connections = 64,
    .body_bytes = 1024 * 1024,
    .body_memory_bytes = 20_000,
    .response_memory_bytes = 40_000,
    .drain_timeout_ms = 8000,
};

test "stress: every response is right when nothing is short" {
    try stress(.{ .options = base, .tolerance = .nothing }, 11);
}

test "stress: everything is given back when everything is short" {
    var options = base;
    options.threads = 2;
    options.queue = 2;
    options.queue_timeout_ms = 5;
    options.connections = 5;
    options.head_timeout_ms = 10;
    options.body_timeout_ms = 10;
    options.keep_alive_timeout_ms = 10;
    options.write_timeout_ms = 20;
    options.requests_per_connection = 7;
    try stress(.{ .options = options, .tolerance = .refusals }, 12);
}

test "stress: one thread" {
    var options = base;
    options.threads = 1;
    try stress(.{ .options = options, .tolerance = .nothing }, 13);
}

test "stress: fewer connections than clients" {
    var options = base;
    options.connections = 3;
    try stress(.{ .options = options, .tolerance = .refusals }, 14);
}

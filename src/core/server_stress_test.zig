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

const Shape = struct {
    options: Options,
    /// Nothing is refused, closed or timed out by the server unless the client gave cause.
    is_strict: bool,
};

/// What a client thread works with.
const Visitor = struct {
    fixture: *Fixture,
    random: std.Random.DefaultPrng,
    is_strict: bool,
    answered: u32 = 0,

    fn run(self: *Visitor) void {
        const end = sys.monotonic_ms() + duration_ms;
        while (sys.monotonic_ms() < end) self.visit() catch |err| {
            if (!self.is_strict) switch (err) {
                error.Reset, error.Ended, error.TimedOut => continue,
                else => {},
            };
            std.debug.print("stress: {t}\n", .{err});
            _ = self.fixture.app.faults.fetchAdd(1, .monotonic);
        };
    }

    fn number(self: *Visitor, below: u32) u32 {
        return self.random.random().uintLessThan(u32, below);
    }

    fn visit(self: *Visitor) !void {
        const is_narrow = self.number(3) == 0;
        var client = try self.fixture.connect_with(if (is_narrow) 4096 else null);
        defer client.close();
        for (0..1 + self.number(6)) |_| {
            switch (self.number(10)) {
                0...2 => try self.ask(&client),
                3 => try self.pipeline(&client),
                4 => try self.upload(&client),
                5 => try self.take_slowly(&client),
                6 => try self.split(&client),
                7 => return self.leave(&client),
                8 => return self.talk_nonsense(&client),
                else => sys.sleep_ms(self.number(8)),
            }
        }
    }

    /// A 503 is allowed where the server is overloaded; then the connection is over.
    fn take(self: *Visitor, client: *Client, length: ?usize) !void {
        const answer = try client.response();
        defer answer.deinit();
        if (answer.status != 200 and !self.is_strict) return error.Ended;
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
        return switch (self.number(8)) {
            0 => std.fmt.bufPrint(storage, "/stream/{d}/{d}", .{ pieces, size }),
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
        if (self.number(2) == 0) try client.expect_end();
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
            .is_strict = shape.is_strict,
        };
        thread.* = try std.Thread.spawn(.{}, Visitor.run, .{visitor});
    }
    for (threads) |thread| thread.join();
    var answered: u32 = 0;
    for (visitors) |visitor| answered += visitor.answered;
    try testing.expect(answered > 50);
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

const base: Options = .{
    .threads = 5,
    .connections = 64,
    .body_bytes = 1024 * 1024,
    .body_memory_bytes = 20_000,
    .response_memory_bytes = 40_000,
    .drain_timeout_ms = 8000,
};

test "stress: every response is right when nothing is short" {
    try stress(.{ .options = base, .is_strict = true }, 11);
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
    try stress(.{ .options = options, .is_strict = false }, 12);
}

test "stress: one thread" {
    var options = base;
    options.threads = 1;
    try stress(.{ .options = options, .is_strict = true }, 13);
}

test "stress: fewer connections than clients" {
    var options = base;
    options.connections = 3;
    try stress(.{ .options = options, .is_strict = false }, 14);
}

//! Responses that wait for an event of the application, on the whole server: who may end the wait,
//! what the deadlines are during and after it, and random ends of all kinds at once.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const fixture_module = @import("server_fixture.zig");
const Client = fixture_module.Client;
const Fixture = fixture_module.Fixture;

/// The oldest that waits, or the next that will.
fn wake_next(fixture: *Fixture) !void {
    for (0..fixture_module.patience_ms) |_| {
        if (fixture.app.wake_one(fixture.server, 0)) return;
        sys.sleep_ms(1);
    }
    return error.NobodyWaits;
}

test "suspended: the end of a wait by its time, early, from a thread, by a descriptor" {
    const fixture = try Fixture.serve(.{ .options = .{ .threads = 2 } });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.ask("/wait/2/1/20/0", 200, "tt");
    try client.ask("/wait/2/1/0/2", 200, "rr");
    for ([_][]const u8{ "/wait/2/1/0/1", "/wait/2/1/0/3" }) |path| {
        try client.get(path);
        for (0..2) |_| try wake_next(fixture);
        try client.expect(200, "rr");
    }
    try fixture.finish();
}

test "suspended: a connection whose response waited for long has its timeouts again" {
    const fixture = try Fixture.serve(.{ .options = .{
        .threads = 2,
        .keep_alive_timeout_ms = 2000,
        .write_timeout_ms = 500,
    } });
    defer fixture.deinit();
    var idle = try fixture.connect();
    defer idle.close();
    var slow = try fixture.connect_with(4096);
    defer slow.close();
    try idle.get("/wait/1/1/0/1");
    try fixture.expect_app("suspensions", 1);
    try slow.get("/wait/3/3000000/0/1");
    try fixture.expect_app("suspensions", 2);
    // Longer than any deadline of theirs that was set before the wait.
    sys.sleep_ms(2300);
    for (0..2) |_| try wake_next(fixture);
    try idle.expect(200, "r");
    try idle.expect_end();
    // It takes nothing of a piece that is larger than its window.
    try fixture.expect_app("abandoned", 1);
    try fixture.expect_count(.connections, 0);
    try fixture.finish();
}

test "suspended: what comes to a watched descriptor may be taken by somebody else" {
    const fixture = try Fixture.serve(.{ .options = .{ .threads = 2 } });
    defer fixture.deinit();
    const pair = try sys.socket_pair();
    defer for (pair) |fd| sys.close(fd);
    fixture.app.shared = pair[0];
    var client = try fixture.connect();
    defer client.close();
    var byte: [1]u8 = undefined;
    for (1..60) |count| {
        try client.get("/wait/1/1/0/4");
        try fixture.expect_app("suspensions", @intCast(count));
        // The poller hears of each byte; whether it still finds it is a matter of chance.
        for (0..3000) |_| {
            _ = try sys.send(pair[1], "x");
            std.atomic.spinLoopHint();
            _ = sys.recv(pair[0], &byte) catch {};
            if (sys.wait_ready(client.fd, .readable, 0)) break;
        } else _ = try sys.send(pair[1], "x");
        try client.expect(200, "r");
        while (true) _ = sys.recv(pair[0], &byte) catch break;
    }
    client.close();
    try fixture.finish();
}

// ---- Everything at once ------------------------------------------------------------------------

/// A client that asks for responses that wait, and has the patience for some of them.
const Visitor = struct {
    fixture: *Fixture,
    random: std.Random.DefaultPrng,
    answered: std.atomic.Value(u32) = .init(0),

    fn run(self: *Visitor) void {
        while (!self.is_over()) self.visit() catch |err| {
            // What the drain does to a client may be anything; until then all is well.
            if (self.is_over()) return;
            std.debug.print("suspended: {t}\n", .{err});
            _ = self.fixture.app.faults.fetchAdd(1, .monotonic);
        };
    }

    fn is_over(self: *const Visitor) bool {
        return self.fixture.server.drain_requested.load(.acquire);
    }

    fn number(self: *Visitor, below: u32) u32 {
        return self.random.random().uintLessThan(u32, below);
    }

    fn visit(self: *Visitor) !void {
        var client = try self.fixture.connect_with(if (self.number(3) == 0) 4096 else null);
        defer client.close();
        for (0..1 + self.number(4)) |_| {
            const pieces = 1 + self.number(4);
            const piece_bytes = ([_]u32{ 1, 500, 40_000 })[self.number(3)];
            const event = self.number(4);
            const must_time_out = event == 0 or self.number(2) == 0;
            const timeout_ms = if (must_time_out) 1 + self.number(8) else 0;
            var storage: [64]u8 = undefined;
            const path = "/wait/{d}/{d}/{d}/{d}";
            const given = .{ pieces, piece_bytes, timeout_ms, event };
            try client.get(try std.fmt.bufPrint(&storage, path, given));
            switch (self.number(8)) {
                0 => return client.reset(),
                1 => return client.half_close(),
                2 => {
                    sys.sleep_ms(self.number(10));
                    return client.reset();
                },
                3 => sys.sleep_ms(self.number(10)),
                else => {},
            }
            const answer = try client.response();
            defer answer.deinit();
            try testing.expectEqual(200, answer.status);
            try testing.expectEqual(pieces * piece_bytes, answer.body.len);
            for (answer.body) |byte| if (byte != 'r' and byte != 't') return error.BadResponse;
            _ = self.answered.fetchAdd(1, .monotonic);
        }
    }
};

/// What the application does to its waiting responses, from threads of its own.
const Waker = struct {
    fixture: *Fixture,
    random: std.Random.DefaultPrng,
    is_over: *std.atomic.Value(bool),

    fn run(self: *Waker) void {
        const random = self.random.random();
        while (!self.is_over.load(.acquire)) {
            for (0..random.uintLessThan(u32, 6)) |_| {
                _ = self.fixture.app.wake_one(self.fixture.server, random.int(u16));
            }
            std.Thread.sleep(random.uintLessThan(u64, std.time.ns_per_ms));
        }
    }
};

fn count_answered(visitors: []const Visitor) u32 {
    var sum: u32 = 0;
    for (visitors) |*visitor| sum += visitor.answered.load(.monotonic);
    return sum;
}

/// For so long, then a drain in the middle of everything.
fn stress(threads: u32, seed: u64, duration_ms: u32) !void {
    const fixture = try Fixture.serve(.{
        .options = .{
            .threads = threads,
            .connections = 64,
            .response_memory_bytes = 50_000,
            .drain_timeout_ms = 8000,
        },
        .send_buffer_bytes = 8192,
    });
    defer fixture.deinit();
    var is_over: std.atomic.Value(bool) = .init(false);
    var wakers: [2]Waker = undefined;
    var waker_threads: [wakers.len]std.Thread = undefined;
    for (&wakers, &waker_threads, 0..) |*waker, *thread, index| {
        waker.* = .{ .fixture = fixture, .random = .init(seed + index), .is_over = &is_over };
        thread.* = try std.Thread.spawn(.{}, Waker.run, .{waker});
    }
    var visitors: [8]Visitor = undefined;
    var visitor_threads: [visitors.len]std.Thread = undefined;
    for (&visitors, &visitor_threads, 10..) |*visitor, *thread, index| {
        visitor.* = .{ .fixture = fixture, .random = .init(seed + index) };
        thread.* = try std.Thread.spawn(.{}, Visitor.run, .{visitor});
    }
    sys.sleep_ms(duration_ms);
    // A busy machine gets more time for them.
    for (0..20_000) |_| {
        if (count_answered(&visitors) > 20) break;
        sys.sleep_ms(1);
    }
    fixture.server.drain();
    for (visitor_threads) |thread| thread.join();
    // Those that only `wake_one` ends are woken until the server has drained.
    const ended = sys.wait_ready(fixture.server.outcome_pipe[0], .readable, 10_000);
    is_over.store(true, .release);
    for (waker_threads) |thread| thread.join();
    try testing.expect(ended);
    try testing.expect(count_answered(&visitors) > 20);
    try fixture.expect_end(.drained);
    try fixture.expect_no_descriptors();
}

test "suspended: resumes, times, resets and drains at random" {
    for ([_]u32{ 1, 2, 5 }, 1..) |threads, round| try stress(threads, round * 100, 700);
}

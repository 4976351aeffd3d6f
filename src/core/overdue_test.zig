//! Application calls with a time limit, on the whole server without Python.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const fixture_module = @import("server_fixture.zig");
const overdue = @import("overdue.zig");
const Client = fixture_module.Client;
const Fixture = fixture_module.Fixture;
const Options = @import("server.zig").Options;

fn options_with(limit_ms: u64, action: overdue.Action) Options {
    return .{
        .threads = 4,
        .connections = 64,
        .drain_timeout_ms = fixture_module.patience_ms,
        .request_timeout_ms = limit_ms,
        .request_action = @intFromEnum(action),
    };
}

fn serve(limit_ms: u64, action: overdue.Action) !*Fixture {
    return Fixture.serve(.{ .options = options_with(limit_ms, action) });
}

fn expect_answered(client: *Client) !void {
    const answer = try client.response();
    defer answer.deinit();
    try testing.expectEqual(504, answer.status);
    try testing.expectEqualStrings("504 Gateway Timeout: request_timeout\n", answer.body);
    try testing.expect(answer.closes);
    try client.expect_end();
}

fn expect_report(fixture: *Fixture) !overdue.Report {
    for (0..fixture_module.patience_ms) |_| {
        if (fixture.server.overdue.take()) |report| return report;
        sys.sleep_ms(1);
    }
    return error.NoReport;
}

test "overdue: the poller answers for the application" {
    for ([_][]const u8{ "/gate", "/hold" }) |path| {
        // Far more than the others need, on a busy machine too.
        const fixture = try serve(1000, .answer);
        defer fixture.deinit();
        var client = try fixture.connect();
        defer client.close();
        try client.get(path);
        try fixture.expect_app("at_gate", 1);
        try expect_answered(&client);
        const report = try expect_report(fixture);
        try testing.expect(report.answered);
        try testing.expect(report.waited_ms >= 1000);
        try testing.expectEqualStrings("GET", report.request.method.slice());
        try testing.expectEqualStrings(path, report.request.target.slice());
        const call = &fixture.server.crews[report.worker].call;
        try testing.expect(call.is_running(report.call));
        fixture.app.gate.set();
        try fixture.expect_count(.requests, 1);
        try testing.expect(!call.is_running(report.call));
        // Its worker and the others serve on.
        for (0..20) |_| {
            var other = try fixture.connect();
            defer other.close();
            try other.ask("/small", 200, "hello");
        }
        client.close();
        try fixture.finish();
    }
}

test "overdue: a call that is only logged answers for itself" {
    const fixture = try serve(40, .log);
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.get("/gate");
    const report = try expect_report(fixture);
    try testing.expect(!report.answered);
    sys.sleep_ms(100);
    try testing.expectEqual(null, fixture.server.overdue.take());
    fixture.app.gate.set();
    try client.expect(200, "passed");
    try client.ask("/small", 200, "hello");
    client.close();
    try fixture.finish();
}

test "overdue: a request that came behind is not begun" {
    const fixture = try serve(40, .answer);
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("GET /gate HTTP/1.1\r\nHost: a\r\n\r\nGET /small HTTP/1.1\r\nHost: a\r\n\r\n");
    try expect_answered(&client);
    fixture.app.gate.set();
    try fixture.expect_count(.connections, 0);
    try testing.expectEqual(1, fixture.app.calls.load(.acquire));
    try fixture.finish();
}

test "overdue: a client that leaves meanwhile" {
    const fixture = try serve(40, .answer);
    defer fixture.deinit();
    for (0..4) |index| {
        var client = try fixture.connect();
        try client.get("/gate");
        try fixture.expect_app("at_gate", @intCast(index + 1));
        if (index % 2 == 0) client.reset() else client.close();
    }
    for (0..4) |_| _ = try expect_report(fixture);
    fixture.app.gate.set();
    try fixture.expect_count(.connections, 0);
    try fixture.finish();
}

test "overdue: a response that parks is not overdue while it waits for its client" {
    const fixture = try Fixture.serve(.{
        .options = blk: {
            // Far more than the application needs, on a busy machine too.
            var options = options_with(2000, .answer);
            options.response_memory_bytes = 4096;
            break :blk options;
        },
        .send_buffer_bytes = 4096,
    });
    defer fixture.deinit();
    var client = try fixture.connect_with(4096);
    defer client.close();
    try client.get("/stream/20/20000/0");
    try fixture.expect_app("parks", 1);
    sys.sleep_ms(2500);
    try client.expect_pattern(20 * 20000);
    try testing.expectEqual(null, fixture.server.overdue.take());
    client.close();
    try fixture.finish();
}

const Racer = struct {
    fixture: *Fixture,
    counts: [2]u32 = .{ 0, 0 },
    failed: ?anyerror = null,

    fn run(self: *Racer, seed: u64) void {
        self.race(seed) catch |err| {
            self.failed = err;
        };
    }

    fn race(self: *Racer, seed: u64) !void {
        var random = std.Random.DefaultPrng.init(seed);
        for (0..60) |_| {
            var client = try self.fixture.connect();
            defer client.close();
            var path: [32]u8 = undefined;
            const pause_ms = 12 + random.random().uintLessThan(u32, 16);
            try client.get(try std.fmt.bufPrint(&path, "/sleep/{d}", .{pause_ms}));
            const answer = try client.response();
            defer answer.deinit();
            if (answer.status == 200) {
                try testing.expectEqualStrings("slept", answer.body);
                // It may be overdue, too, where the machine has no processor for it.
                try client.get("/small");
                const next = try client.response();
                defer next.deinit();
                try testing.expect(next.status == 200 or next.status == 504);
            } else {
                try testing.expectEqual(504, answer.status);
                try client.expect_end();
            }
            self.counts[@intFromBool(answer.status == 504)] += 1;
        }
    }
};

test "overdue: handlers that end just then give one whole response" {
    const fixture = try serve(20, .answer);
    defer fixture.deinit();
    var racers: [4]Racer = undefined;
    var threads: [4]std.Thread = undefined;
    for (&racers, &threads, 0..) |*racer, *thread, seed| {
        racer.* = .{ .fixture = fixture };
        thread.* = try std.Thread.spawn(.{}, Racer.run, .{ racer, seed });
    }
    for (threads) |thread| thread.join();
    for (racers) |racer| if (racer.failed) |err| return err;
    while (fixture.server.overdue.take()) |_| {}
    try fixture.finish();
}

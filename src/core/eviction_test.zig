//! Tests of eviction.zig with the whole server: who goes when what is short, and who stays.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const eviction = @import("eviction.zig");
const fixture_module = @import("server_fixture.zig");
const Fixture = fixture_module.Fixture;
const Client = fixture_module.Client;
const metrics_module = @import("metrics.zig");
const Options = @import("server.zig").Options;

const narrow = 4096;
/// Longer than the time from which a client counts as stalled.
const stalled_ms = eviction.stalled_ms_min + 300;

fn serve(options: Options) !*Fixture {
    return Fixture.serve(.{ .options = options, .send_buffer_bytes = 4096 });
}

/// Clients that ask and read nothing.
fn stall(fixture: *Fixture, clients: []Client, path: []const u8) !void {
    for (clients) |*client| {
        client.* = try fixture.connect_with(narrow);
        try client.get(path);
        sys.sleep_ms(50);
    }
}

/// Waits until one of the clients has been evicted; its number. Which one it is depends on their
/// kernels, which may still take a segment into a full buffer. That the longest stalled goes is
/// shown by the test in eviction.zig.
fn expect_one_evicted(clients: []Client) !usize {
    for (0..400) |_| {
        for (clients, 0..) |*client, number| if (is_reset(client)) return number;
        sys.sleep_ms(20);
    }
    return error.NobodyEvicted;
}

fn expect_others(clients: []Client, evicted: usize) !void {
    for (clients, 0..) |*client, number| {
        if (number != evicted) {
            try client.expect_pattern(900_000);
            continue;
        }
        // A reset, and not an end that could pass for that of the response.
        try testing.expect(std.meta.isError(client.response()));
    }
}

fn is_reset(client: *const Client) bool {
    var entry = [1]std.c.pollfd{.{ .fd = client.fd, .events = 0, .revents = 0 }};
    return std.c.poll(&entry, 1, 0) == 1 and entry[0].revents & std.c.POLL.ERR != 0;
}

fn expect_counted(fixture: *Fixture, count: u64) !void {
    const shard = fixture.server.metrics.poller_shard();
    const closed = &shard.closed[@intFromEnum(metrics_module.Closed.stalled)];
    for (0..400) |_| {
        if (closed.get() == count) return;
        sys.sleep_ms(20);
    }
    return error.NotCounted;
}

test "eviction: a full table drops one that has stalled, of any kind, and nobody else" {
    const paths = [_][]const u8{
        "/large/900000", "/stream/90/10000", "/write/90/10000", "/file/900000",
    };
    for (paths) |path| {
        const fixture = try serve(.{
            .threads = 4,
            .connections = 3,
            .response_memory_bytes = 50_000,
        });
        defer fixture.deinit();
        var stalled: [3]Client = undefined;
        try stall(fixture, &stalled, path);
        defer for (&stalled) |*client| client.close();
        sys.sleep_ms(stalled_ms);
        var other = try fixture.connect();
        defer other.close();
        try other.ask("/small", 200, "hello");
        try expect_counted(fixture, 1);
        const evicted = try expect_one_evicted(&stalled);
        // An idle one goes before the next that has stalled. It has the slot that became free, and
        // the poller looks for idle ones once a millisecond.
        try fixture.expect_handed_back(evicted);
        sys.sleep_ms(5);
        var another = try fixture.connect();
        defer another.close();
        try another.ask("/small", 200, "hello");
        try other.expect_end();
        try expect_others(&stalled, evicted);
        try expect_counted(fixture, 1);
        another.close();
        for (&stalled) |*client| client.close();
        other.close();
        try fixture.finish();
    }
}

test "eviction: a full table waits for a client that takes something now and then" {
    const fixture = try serve(.{ .threads = 2, .connections = 1 });
    defer fixture.deinit();
    var slow = try fixture.connect_with(narrow);
    defer slow.close();
    try slow.get("/large/400000");
    var other = try fixture.connect();
    defer other.close();
    try other.get("/small");
    for (0..3 * eviction.stalled_ms_min / 100) |_| {
        sys.sleep_ms(100);
        var buffer: [3000]u8 = undefined;
        const count = try sys.recv(slow.fd, &buffer);
        try slow.received.appendSlice(testing.allocator, buffer[0..count]);
    }
    try slow.expect_pattern(400_000);
    try other.expect(200, "hello");
    other.close();
    slow.close();
    try fixture.finish();
}

test "eviction: timeouts.write does not end a client that drains a full kernel buffer slowly" {
    for ([_][]const u8{ "/large/2000000", "/write/200/10000" }) |path| {
        const fixture = try Fixture.serve(.{ .options = .{
            .threads = 2,
            .write_timeout_ms = 800,
            .response_memory_bytes = 50_000,
        }, .send_buffer_bytes = 400_000 });
        defer fixture.deinit();
        var slow = try fixture.connect_with(narrow);
        defer slow.close();
        try slow.get(path);
        // So little that the socket stays full for all of it.
        for (0..25) |_| {
            sys.sleep_ms(100);
            var buffer: [2000]u8 = undefined;
            const count = try sys.recv(slow.fd, &buffer);
            try slow.received.appendSlice(testing.allocator, buffer[0..count]);
        }
        try slow.expect_pattern(2_000_000);
        slow.close();
        try fixture.finish();
    }
}

test "eviction: short buffer memory drops a stalled holder, not who holds nothing" {
    const fixture = try serve(.{
        .threads = 4,
        .connections = 100,
        .response_memory_bytes = 100_000,
        .buffer_memory_bytes = 250_000,
    });
    defer fixture.deinit();
    var files: [1]Client = undefined;
    try stall(fixture, &files, "/file/900000");
    defer for (&files) |*client| client.close();
    var holders: [3]Client = undefined;
    try stall(fixture, &holders, "/stream/90/10000");
    defer for (&holders) |*client| client.close();
    try expect_counted(fixture, 1);
    try expect_others(&holders, try expect_one_evicted(&holders));
    try files[0].expect_pattern(900_000);
    for (&holders) |*client| client.close();
    for (&files) |*client| client.close();
    try fixture.finish();
}

test "eviction: a request that waits for a thread gets that of a stalled write()" {
    const fixture = try serve(.{ .threads = 2, .response_memory_bytes = 50_000 });
    defer fixture.deinit();
    var writers: [2]Client = undefined;
    try stall(fixture, &writers, "/write/90/10000");
    defer for (&writers) |*client| client.close();
    var other = try fixture.connect();
    defer other.close();
    try other.ask("/small", 200, "hello");
    try expect_counted(fixture, 1);
    try expect_others(&writers, try expect_one_evicted(&writers));
    other.close();
    for (&writers) |*client| client.close();
    try fixture.finish();
}

test "eviction: stalled clients hold no more of the kernel's memory than their share" {
    const fixture = try Fixture.serve(.{ .options = .{
        .threads = 2,
        .socket_memory_bytes = 150_000,
    }, .send_buffer_bytes = 40_000 });
    defer fixture.deinit();
    var clients: [4]Client = undefined;
    try stall(fixture, &clients, "/large/900000");
    defer for (&clients) |*client| client.close();
    _ = try expect_one_evicted(&clients);
    for (&clients) |*client| client.close();
    try fixture.finish();
}

test "eviction: a drain does not wait for a client that has stalled for timeouts.drain" {
    for ([_][]const u8{ "/large/900000", "/write/90/10000" }) |path| {
        const fixture = try serve(.{
            .threads = 2,
            .response_memory_bytes = 50_000,
            .drain_timeout_ms = 1500,
        });
        defer fixture.deinit();
        var clients: [1]Client = undefined;
        try stall(fixture, &clients, path);
        defer for (&clients) |*client| client.close();
        sys.sleep_ms(1000);
        // In order, and not by the drain's own end.
        try fixture.finish();
    }
}

test "eviction: a connection stays while the kernel still has the end of an answer" {
    for ([_][]const u8{ "", "Connection: close\r\n" }) |field| {
        const fixture = try Fixture.serve(.{ .options = .{
            .threads = 2,
            .keep_alive_timeout_ms = 100,
        }, .send_buffer_bytes = 400_000 });
        defer fixture.deinit();
        var client = try fixture.connect_with(narrow);
        defer client.close();
        var storage: [200]u8 = undefined;
        const request = "GET /large/300000 HTTP/1.1\r\nHost: a\r\n{s}\r\n";
        try client.send(try std.fmt.bufPrint(&storage, request, .{field}));
        // Longer than lingering takes.
        sys.sleep_ms(4000);
        try testing.expectEqual(1, fixture.server.connection_count.load(.monotonic));
        try client.expect_pattern(300_000);
        try client.expect_end();
        client.close();
        try fixture.expect_count(.connections, 0);
        try fixture.finish();
    }
}

//! How the server ends: drained in every state that a connection can be in, timed out or stopped.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const fixture_module = @import("server_fixture.zig");
const Client = fixture_module.Client;
const Fixture = fixture_module.Fixture;
const patience_ms = fixture_module.patience_ms;
const Options = @import("server.zig").Options;

/// The longest that a drain may take here, far below the timeouts of connections.
const options: Options = .{ .threads = 4, .connections = 64, .drain_timeout_ms = 2 * patience_ms };
const narrow = 4096;

fn one_thread() Options {
    var own = options;
    own.threads = 1;
    return own;
}

fn serve() !*Fixture {
    return Fixture.serve(.{ .options = options });
}

fn serve_narrow(given: Options) !*Fixture {
    return Fixture.serve(.{ .options = given, .send_buffer_bytes = 4096 });
}

fn drain(fixture: *Fixture) !void {
    fixture.server.drain();
    for (0..patience_ms) |_| {
        if (fixture.server.draining.load(.acquire)) return;
        sys.sleep_ms(1);
    }
    return error.NotDraining;
}

fn expect_last(client: *Client, status: u16, body: []const u8) !void {
    const answer = try client.response();
    defer answer.deinit();
    try testing.expectEqual(status, answer.status);
    try testing.expectEqualStrings(body, answer.body);
    try testing.expect(answer.closes);
    try client.expect_end();
}

test "end: a drain closes what is idle, at once, and twice is once" {
    const fixture = try serve();
    defer fixture.deinit();
    var clients: [8]Client = undefined;
    for (&clients, 0..) |*client, index| {
        client.* = try fixture.connect();
        if (index % 2 == 0) try client.ask("/small", 200, "hello");
    }
    defer for (&clients) |*client| client.close();
    try fixture.expect_count(.connections, clients.len);
    fixture.server.drain();
    fixture.server.drain();
    for (&clients) |*client| try client.expect_end();
    try fixture.expect_end(.drained);
}

test "end: a listener that lets nobody new in still gives up those who wait" {
    if (!sys.is_linux) return error.SkipZigTest;
    for ([_]fixture_module.Family{ .tcp, .unix }) |family| {
        var listener: sys.Fd = sys.no_fd;
        const setup: fixture_module.Setup = .{ .options = options, .family = family };
        const address = try fixture_module.open_listener(setup, &listener);
        defer sys.close(listener);
        defer if (family == .unix) {
            _ = std.c.unlink(@ptrCast(&address.un.path));
        };
        var waiting = try fixture_module.connect_to(&address, null);
        defer waiting.close();
        try testing.expect(sys.stop_arrivals(listener));
        if (family == .unix) {
            const refused = fixture_module.connect_to(&address, null);
            try testing.expectError(error.ConnectionRefused, refused);
        } else {
            const kind = std.c.SOCK.STREAM | std.c.SOCK.CLOEXEC | std.c.SOCK.NONBLOCK;
            const late = try std.posix.socket(address.any.family, kind, 0);
            defer sys.close(late);
            const length = address.getOsSockLen();
            const pending = std.posix.connect(late, &address.any, length);
            try testing.expectError(error.WouldBlock, pending);
            try testing.expect(!sys.wait_ready(late, .writable, 50));
        }
        const accepted = try sys.accept(listener);
        defer sys.close(accepted.fd);
        _ = try sys.send(accepted.fd, "hello");
        var buffer: [8]u8 = undefined;
        try testing.expectEqual(5, try sys.recv(waiting.fd, &buffer));
    }
}

test "end: an idle connection has a moment, for a request that is on its way" {
    const fixture = try serve();
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.ask("/small", 200, "hello");
    try drain(fixture);
    try client.get("/small");
    try expect_last(&client, 200, "hello");
    try fixture.expect_end(.drained);
}

test "end: before the drain connections are accepted, each for one more request" {
    const fixture = try serve();
    defer fixture.deinit();
    var old = try fixture.connect();
    defer old.close();
    try old.ask("/small", 200, "hello");
    fixture.server.announce_drain();
    try testing.expectEqualStrings("draining", fixture.server.unready_reason().?);
    try old.get("/small");
    try expect_last(&old, 200, "hello");
    var new = try fixture.connect();
    defer new.close();
    try new.get("/small");
    try expect_last(&new, 200, "hello");
    try fixture.finish();
}

test "end: a client that does not close is not waited for" {
    const fixture = try serve();
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.get("/gate");
    try fixture.expect_app("at_gate", 1);
    try drain(fixture);
    fixture.app.gate.set();
    // The response and the end of the server's side are there, and the client does nothing.
    try fixture.expect_end(.drained);
    try client.expect_status(200);
}

test "end: a drain without any connection" {
    const fixture = try serve();
    defer fixture.deinit();
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "end: a drain that was asked for before the threads began" {
    const fixture = try Fixture.start(.{ .options = options });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.get("/small");
    fixture.server.drain();
    try fixture.run();
    // It had come, so it is answered.
    try expect_last(&client, 200, "hello");
    try fixture.expect_end(.drained);
}

test "end: a drain waits for half a head and half a body" {
    const fixture = try serve();
    defer fixture.deinit();
    var clients: [4]Client = undefined;
    const framed = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: ";
    const texts = [_][2][]const u8{
        .{ "GET /small HTTP/1.1\r\n", "Host: a\r\n\r\n" },
        .{ framed ++ "5\r\n\r\nhe", "llo" },
        .{ framed ++ "00005\r\nExpect: 100-continue\r\n\r\n", "hello" },
        .{
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
            "llo\r\n0\r\n\r\n",
        },
    };
    for (&clients, texts) |*client, text| {
        client.* = try fixture.connect();
        try client.send(text[0]);
    }
    defer for (&clients) |*client| client.close();
    try clients[2].expect(100, "");
    try fixture.expect_count(.connections, clients.len);
    sys.sleep_ms(20);
    try drain(fixture);
    sys.sleep_ms(20);
    for (&clients, texts) |*client, text| try client.send(text[1]);
    for (&clients) |*client| try expect_last(client, 200, "hello");
    for (&clients) |*client| client.close();
    try fixture.expect_end(.drained);
    try fixture.expect_no_descriptors();
}

test "end: a drain answers what runs, what is queued and what is pipelined" {
    const fixture = try Fixture.serve(.{ .options = one_thread() });
    defer fixture.deinit();
    var running = try fixture.connect();
    defer running.close();
    try running.get("/gate");
    try fixture.expect_app("at_gate", 1);
    var queued = try fixture.connect();
    defer queued.close();
    try queued.get("/small");
    try fixture.expect_count(.queued, 1);
    // Behind the one that runs: its answer says that the connection closes.
    try running.get("/small");
    try drain(fixture);
    fixture.app.gate.set();
    try expect_last(&running, 200, "passed");
    try expect_last(&queued, 200, "hello");
    running.close();
    queued.close();
    try fixture.expect_end(.drained);
}

test "end: a drain while responses that promised to keep the connection go on" {
    for ([_][]const u8{ "/stream/6/1000/20", "/stream/6/1/20", "/own/30/100000" }) |path| {
        const fixture = try serve_narrow(options);
        defer fixture.deinit();
        var clients: [3]Client = undefined;
        for (&clients) |*client| {
            client.* = try fixture.connect_with(narrow);
            try client.get(path);
            // Its head is here.
            try testing.expect(sys.wait_ready(client.fd, .readable, patience_ms));
        }
        defer for (&clients) |*client| client.close();
        try drain(fixture);
        for (&clients) |*client| {
            const answer = try client.response();
            defer answer.deinit();
            try testing.expectEqual(200, answer.status);
            try testing.expect(!answer.closes);
        }
        for (&clients) |*client| try client.expect_end();
        try fixture.expect_end(.drained);
    }
}

test "end: a drain at any moment of many short requests" {
    var random: std.Random.DefaultPrng = .init(3);
    for (0..40) |_| {
        const fixture = try serve();
        defer fixture.deinit();
        var threads: [3]std.Thread = undefined;
        for (&threads) |*thread| {
            thread.* = try std.Thread.spawn(.{}, ask_until_end, .{fixture});
        }
        std.Thread.sleep(random.random().uintLessThan(u64, 4 * std.time.ns_per_ms));
        fixture.server.drain();
        for (threads) |thread| thread.join();
        try fixture.expect_end(.drained);
    }
}

/// Each response comes whole, and after one that says so the connection ends.
fn ask_until_end(fixture: *Fixture) void {
    var client = fixture.connect() catch return;
    defer client.close();
    while (true) {
        client.get("/small") catch return;
        const answer = client.response() catch return;
        defer answer.deinit();
        if (answer.status != 200) _ = fixture.app.faults.fetchAdd(1, .monotonic);
        if (!answer.closes) continue;
        client.expect_end() catch {
            _ = fixture.app.faults.fetchAdd(1, .monotonic);
        };
        return;
    }
}

test "end: a drain waits for a response that its client takes slowly" {
    const fixture = try serve_narrow(options);
    defer fixture.deinit();
    var clients: [4]Client = undefined;
    const paths = [_][]const u8{
        "/large/900000", "/stream/9/100000", "/own/9/100000", "/write/9/100000",
    };
    for (&clients, paths) |*client, path| {
        client.* = try fixture.connect_with(narrow);
        try client.get(path);
    }
    defer for (&clients) |*client| client.close();
    try fixture.expect_app("parks", 3);
    try fixture.expect_count(.running, 0);
    try drain(fixture);
    sys.sleep_ms(30);
    for (&clients) |*client| {
        try client.expect_pattern(900_000);
        try client.expect_end();
    }
    try fixture.expect_end(.drained);
}

test "end: a drain while clients linger" {
    const fixture = try serve();
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("nonsense\r\n\r\n");
    try client.expect_status(400);
    try client.expect_end();
    try drain(fixture);
    sys.sleep_ms(20);
    try testing.expectEqual(1, fixture.server.counts().connections);
    client.close();
    try fixture.expect_end(.drained);
}

test "end: a drain refuses new clients and takes those that had come" {
    const fixture = try Fixture.serve(.{ .options = one_thread() });
    defer fixture.deinit();
    var running = try fixture.connect();
    defer running.close();
    try running.get("/gate");
    try fixture.expect_app("at_gate", 1);
    try drain(fixture);
    for (0..1000) |_| {
        var late = fixture.connect() catch break;
        late.close();
        sys.sleep_ms(1);
    } else return error.StillListening;
    fixture.app.gate.set();
    try expect_last(&running, 200, "passed");
    running.close();
    try fixture.expect_end(.drained);
}

test "end: a drain that takes too long" {
    for ([_][]const u8{ "/gate", "/large/4000000", "/own/40/100000" }) |path| {
        var own = options;
        own.drain_timeout_ms = 100;
        const fixture = try serve_narrow(own);
        defer fixture.deinit();
        var client = try fixture.connect_with(narrow);
        defer client.close();
        try client.get(path);
        if (path.len == 5) {
            try fixture.expect_app("at_gate", 1);
        } else {
            try fixture.expect_app("parks", 1);
        }
        fixture.server.drain();
        try fixture.expect_end(.timed_out);
        client.close();
        try fixture.expect_no_descriptors();
    }
}

test "end: a stop with requests running, queued, parked, half read and half written" {
    const fixture = try serve_narrow(options);
    defer fixture.deinit();
    const paths = [_][]const u8{
        "/large/4000000", "/stream/40/100000", "/own/40/100000", "/small", "/gate", "/gate",
        "/gate",          "/gate",             "/small",         "/small",
    };
    var clients: [paths.len]Client = undefined;
    for (&clients, paths, 0..) |*client, path, index| {
        client.* = try fixture.connect_with(narrow);
        try client.get(path);
        if (index < 3) try fixture.expect_app("parks", @intCast(index + 1));
        if (index >= 4 and index < 8) try fixture.expect_app("at_gate", @intCast(index - 3));
    }
    defer for (&clients) |*client| client.close();
    try fixture.expect_count(.queued, 2);
    // Their worker is at the gate, so the parked ones wait for it.
    try clients[2].send("POST /echo HTTP/1.1\r\n");
    var buffer: [100_000]u8 = undefined;
    for (0..20) |_| {
        for (clients[0..3]) |*client| _ = try sys.recv(client.fd, &buffer);
    }
    fixture.server.stop();
    fixture.server.stop();
    fixture.server.drain();
    fixture.app.gate.set();
    try fixture.expect_end(.stopped);
    for (&clients) |*client| client.close();
    try fixture.expect_no_descriptors();
}

test "end: a stop before the threads began" {
    const fixture = try Fixture.start(.{ .options = options });
    defer fixture.deinit();
    fixture.server.stop();
    try fixture.run();
    try fixture.expect_end(.stopped);
}

//! The admin listener on a real socket: its answers before there is a server, its limits and its
//! deadlines. With the server and the GIL it is tested from Python.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const admin_module = @import("admin.zig");
const fixture_module = @import("server_fixture.zig");
const Admin = admin_module.Admin;
const Client = fixture_module.Client;

const gpa = testing.allocator;

const Fixture = struct {
    admin: *Admin,
    address: std.net.Address,

    fn init(options: admin_module.Options) !Fixture {
        var listener: sys.Fd = sys.no_fd;
        const address = try fixture_module.open_listener(.{ .options = .{} }, &listener);
        var given = options;
        given.hosts = "a\ntest";
        return .{ .admin = try Admin.create(gpa, given, &.{listener}), .address = address };
    }

    fn deinit(self: *Fixture) void {
        self.admin.destroy();
    }

    fn connect(self: *const Fixture) !Client {
        return fixture_module.connect_to(&self.address, null);
    }

    fn expect(self: *const Fixture, path: []const u8, status: u16, body: []const u8) !void {
        var client = try self.connect();
        defer client.close();
        try client.ask(path, status, body);
    }
};

test "admin: before there is a server it lives and is not ready" {
    var fixture = try Fixture.init(.{});
    defer fixture.deinit();
    try fixture.expect("/livez", 200, "alive\n");
    try fixture.expect("/readyz", 503, "not ready: importing the application\n");
    fixture.admin.set_stage(.startup);
    try fixture.expect("/readyz", 503, "not ready: running app.startup\n");
}

test "admin: the watchdog is fed before there is a server, and by no client's leave" {
    const pair = try sys.socket_pair();
    defer sys.close(pair[1]);
    var fixture = try Fixture.init(.{ .watchdog_fd = pair[0], .watchdog_period_ms = 20 });
    var received: usize = 0;
    var bytes: [64]u8 = undefined;
    const message = "WATCHDOG=1";
    while (received < 3 * message.len) {
        try testing.expect(sys.wait_ready(pair[1], .readable, 10_000));
        received += try sys.recv(pair[1], &bytes);
    }
    fixture.deinit();
    // Its end of the socket is closed with it.
    while (try sys.recv(pair[1], &bytes) > 0) {}
}

test "admin: one connection, many requests, some of them at once" {
    var fixture = try Fixture.init(.{});
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    for (0..5) |_| try client.ask("/livez", 200, "alive\n");
    try client.send("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" ** 40);
    for (0..40) |_| try client.expect(200, "alive\n");
    try client.send("HEAD /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    const answer = try client.response_to("HEAD");
    defer answer.deinit();
    try testing.expectEqualStrings("6", answer.field("content-length").?);
    try testing.expect(answer.closes);
    try client.expect_end();
}

test "admin: what it does not know, does not do, does not understand" {
    var fixture = try Fixture.init(.{});
    defer fixture.deinit();
    try fixture.expect("/nothing", 404, "not found\n");
    var client = try fixture.connect();
    defer client.close();
    try client.send("DELETE /status HTTP/1.1\r\nHost: a\r\n\r\n");
    const refused = try client.response();
    defer refused.deinit();
    try testing.expectEqual(405, refused.status);
    try testing.expectEqualStrings("GET, HEAD", refused.field("allow").?);
    try client.send("GET  /livez HTTP/1.1\r\n\r\n");
    try client.expect(400, "bad_request_line");
    try client.expect_end();
}

test "admin: a body is refused with the connection, a long head with 431" {
    var fixture = try Fixture.init(.{});
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    const answer = try client.response();
    defer answer.deinit();
    try testing.expect(answer.closes);
    try client.expect_end();
    var other = try fixture.connect();
    defer other.close();
    try other.send("GET /livez HTTP/1.1\r\nA: " ++ "x" ** 9000);
    try other.expect_status(431);
}

test "admin: HTTP/1.0 ends the connection unless it asks for it to stay" {
    var fixture = try Fixture.init(.{});
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    const answer = try client.response();
    defer answer.deinit();
    try testing.expectEqualStrings("keep-alive", answer.field("connection").?);
    try client.send("GET /livez HTTP/1.0\r\n\r\n");
    try client.expect(200, "alive\n");
    try client.expect_end();
}

test "admin: past its limit the connection that has been idle longest is closed" {
    var fixture = try Fixture.init(.{});
    defer fixture.deinit();
    var clients: [admin_module.connections_max + 1]Client = undefined;
    for (&clients) |*client| {
        client.* = try fixture.connect();
        try client.ask("/livez", 200, "alive\n");
        sys.sleep_ms(2); // the clock is coarse
    }
    defer for (&clients) |*client| client.close();
    try clients[0].expect_end();
    try clients[admin_module.connections_max].ask("/livez", 200, "alive\n");
}

test "admin: past its limit the slowest client makes room for a probe" {
    for ([_][]const u8{ "GET /livez HT", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" }) |bytes| {
        var fixture = try Fixture.init(.{});
        defer fixture.deinit();
        var clients: [admin_module.connections_max]Client = undefined;
        for (&clients) |*client| {
            client.* = try fixture.connect();
            try client.send(bytes);
        }
        defer for (&clients) |*client| client.close();
        try fixture.expect("/livez", 200, "alive\n");
    }
}

test "admin: stacks that do not come are not waited for" {
    var fixture = try Fixture.init(.{});
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    const before = sys.monotonic_ms();
    try client.get("/threads");
    // Others are answered meanwhile.
    try fixture.expect("/livez", 200, "alive\n");
    const is_answered = sys.wait_ready(client.fd, .readable, 0);
    const is_early = sys.monotonic_ms() - before < admin_module.stacks_timeout_ms;
    try testing.expect(!(is_answered and is_early));
    try client.expect_status(503);
    try testing.expect(sys.monotonic_ms() - before >= admin_module.stacks_timeout_ms - 10);
}

test "admin: stacks that come are given to all who asked" {
    var fixture = try Fixture.init(.{});
    defer fixture.deinit();
    var clients: [3]Client = undefined;
    for (&clients) |*client| {
        client.* = try fixture.connect();
        try client.get("/threads");
    }
    defer for (&clients) |*client| client.close();
    try testing.expectEqual(.stacks, fixture.admin.inspector.wait());
    for (&clients) |*client| {
        // One that was not read before the first answer gets a later one.
        for (0..200) |_| {
            if (sys.wait_ready(client.fd, .readable, 10)) break;
            try fixture.admin.inspector.answer("{}");
            fixture.admin.wake();
        }
        try client.expect(200, "{}");
    }
}

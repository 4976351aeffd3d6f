//! Responses that wait for an event of the application, on the whole server: who may end the wait,
//! what the deadlines are during and after it, and random ends of all kinds at once.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const fixture_module = @import("server_fixture.zig");
const Client = fixture_module.Client;
const Fixture = fixture_module.Fixture;

test "suspended: the end of a wait by its time, early, from a thread, by a descriptor" {
    const fixture = try Fixture.serve(.{ .options = .{ .threads = 2 } });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.ask("/wait/2/1/20/0", 200, "tt");
    try client.ask("/wait/2/1/0/2", 200, "rr");
    for ([_][]const u8{ "/wait/2/1/0/1", "/wait/2/1/0/3" }) |path| {
        try client.get(path);
        for (0..2) |_| while (!fixture.app.wake_one(fixture.server, 0)) sys.sleep_ms(1);
        try client.expect(200, "rr");
    }
    try fixture.finish();
}

test "suspended: a connection whose response waited for long has its timeouts again" {
    const fixture = try Fixture.serve(.{ .options = .{
        .threads = 2,
        .keep_alive_timeout_ms = 150,
        .write_timeout_ms = 50,
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
    sys.sleep_ms(300);
    for (0..2) |_| while (!fixture.app.wake_one(fixture.server, 0)) sys.sleep_ms(1);
    try idle.expect(200, "r");
    try idle.expect_end();
    // It takes nothing of a piece that is larger than its window.
    try fixture.expect_app("abandoned", 1);
    try fixture.expect_count(.connections, 0);
    try fixture.finish();
}

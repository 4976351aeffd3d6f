//! Tells which sockets are ready: epoll on Linux, kqueue on macOS, one interface chosen at
//! comptime.
//!
//! Registration is edge-triggered and made once for a connection's life, so a request costs no
//! system call here: every change of readiness is reported once and the owner reads or writes until
//! the kernel has no more. `register`, `unregister` and `poll` belong to the thread that holds the
//! baton; `wake` may be called from any thread. Nothing here knows Python.

const std = @import("std");
const builtin = @import("builtin");
const build_options = @import("build_options");
const sys = @import("sys.zig");

pub const uses_kqueue = builtin.os.tag != .linux or build_options.libkqueue;
pub const Reactor = if (uses_kqueue)
    @import("reactor/kqueue.zig").Reactor
else
    @import("reactor/epoll.zig").Reactor;

/// What became ready, by the token given at registration.
pub const Event = struct {
    token: u64,
    readable: bool,
    writable: bool,
    /// The client has closed its sending side, or the connection is broken.
    hangup: bool,
    /// The connection is broken: nothing can be sent any more.
    broken: bool,
};

/// Most events that one `poll` reports; more wait in the kernel for the next.
pub const events_max = 256;

/// Token under which `wake` would show; no registration may use it.
pub const wake_token: u64 = std.math.maxInt(u64);

comptime {
    for (.{ "init", "deinit", "register", "watch", "unregister", "poll", "wake" }) |name| {
        if (!@hasDecl(Reactor, name)) @compileError("the reactor lacks " ++ name);
    }
}

const testing = std.testing;
const ms = std.time.ns_per_ms;

const Fixture = struct {
    reactor: Reactor,
    pair: [2]sys.Fd,
    events: [events_max]Event = undefined,

    fn init() !Fixture {
        var reactor = try Reactor.init();
        errdefer reactor.deinit();
        const pair = try sys.socket_pair();
        return .{ .reactor = reactor, .pair = pair };
    }

    fn deinit(self: *Fixture) void {
        sys.close(self.pair[0]);
        sys.close(self.pair[1]);
        self.reactor.deinit();
    }

    /// All that is reported for `token` until nothing more comes, as one event.
    fn collect(self: *Fixture, token: u64, timeout_ms: u64) Event {
        var sum: Event = .{
            .token = token,
            .readable = false,
            .writable = false,
            .hangup = false,
            .broken = false,
        };
        var timeout_ns = timeout_ms * ms;
        while (true) {
            const events = self.reactor.poll(&self.events, timeout_ns);
            if (events.len == 0) return sum;
            for (events) |event| {
                std.debug.assert(event.token == token);
                sum.readable = sum.readable or event.readable;
                sum.writable = sum.writable or event.writable;
                sum.hangup = sum.hangup or event.hangup;
                sum.broken = sum.broken or event.broken;
            }
            timeout_ns = 0;
        }
    }
};

test "reactor: a new connection is writable and not readable" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    try fixture.reactor.register(fixture.pair[0], 7);
    const event = fixture.collect(7, 1000);
    try testing.expect(event.writable);
    try testing.expect(!event.readable);
    try testing.expect(!event.hangup);
}

test "reactor: an edge is reported once and again with new data" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    try fixture.reactor.register(fixture.pair[0], 7);
    _ = fixture.collect(7, 1000);
    _ = try sys.send(fixture.pair[1], "abc");
    try testing.expect(fixture.collect(7, 1000).readable);
    try testing.expect(!fixture.collect(7, 20).readable);
    _ = try sys.send(fixture.pair[1], "d");
    try testing.expect(fixture.collect(7, 1000).readable);
}

test "reactor: a full socket is writable again when it drained" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    try fixture.reactor.register(fixture.pair[0], 7);
    _ = fixture.collect(7, 1000);
    const bytes: [4096]u8 = @splat(0);
    while (true) {
        _ = sys.send(fixture.pair[0], &bytes) catch |err| {
            try testing.expectEqual(error.WouldBlock, err);
            break;
        };
    }
    try testing.expect(!fixture.collect(7, 20).writable);
    var buffer: [65536]u8 = undefined;
    while (true) _ = sys.recv(fixture.pair[1], &buffer) catch break;
    try testing.expect(fixture.collect(7, 1000).writable);
}

test "reactor: a client that leaves is readable and hung up" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    try fixture.reactor.register(fixture.pair[0], 7);
    _ = fixture.collect(7, 1000);
    sys.shutdown_send(fixture.pair[1]);
    const event = fixture.collect(7, 1000);
    try testing.expect(event.readable);
    try testing.expect(event.hangup);
}

test "reactor: a watched descriptor is reported once" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    try fixture.reactor.watch(fixture.pair[0], 9, .readable);
    try testing.expect(!fixture.collect(9, 20).readable);
    _ = try sys.send(fixture.pair[1], "abc");
    try testing.expect(fixture.collect(9, 1000).readable);
    _ = try sys.send(fixture.pair[1], "d");
    try testing.expect(!fixture.collect(9, 20).readable);
    fixture.reactor.unregister(fixture.pair[0]);
    try fixture.reactor.watch(fixture.pair[0], 10, .writable);
    try testing.expect(fixture.collect(10, 1000).writable);
}

test "reactor: nothing is reported after unregister" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    try fixture.reactor.register(fixture.pair[0], 7);
    _ = fixture.collect(7, 1000);
    fixture.reactor.unregister(fixture.pair[0]);
    _ = try sys.send(fixture.pair[1], "abc");
    try testing.expectEqual(0, fixture.reactor.poll(&fixture.events, 20 * ms).len);
}

test "reactor: poll returns after its timeout with nothing" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    const before = sys.monotonic_ms();
    try testing.expectEqual(0, fixture.reactor.poll(&fixture.events, 30 * ms).len);
    try testing.expect(sys.monotonic_ms() - before >= 20);
}

test "reactor: a poll may wait for less than a millisecond" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    const before = sys.monotonic_ns();
    for (0..20) |_| {
        try testing.expectEqual(0, fixture.reactor.poll(&fixture.events, ms / 4).len);
    }
    const elapsed = sys.monotonic_ns() - before;
    if (!uses_kqueue) try testing.expect(elapsed >= 5 * ms);
    fixture.reactor.wake();
    try fixture.reactor.register(fixture.pair[0], 7);
    try testing.expect(fixture.reactor.poll(&fixture.events, ms / 4).len == 1);
}

test "reactor: wake from another thread ends a poll that waits for ever" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    const waker = try std.Thread.spawn(.{}, struct {
        fn run(reactor: *Reactor) void {
            _ = sys.wait_ready(-1, .readable, 20);
            reactor.wake();
        }
    }.run, .{&fixture.reactor});
    try testing.expectEqual(0, fixture.reactor.poll(&fixture.events, null).len);
    waker.join();
    // Woken once, it waits again.
    try testing.expectEqual(0, fixture.reactor.poll(&fixture.events, 10 * ms).len);
}

test "reactor: a wake before the poll is not lost" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    fixture.reactor.wake();
    fixture.reactor.wake();
    try testing.expectEqual(0, fixture.reactor.poll(&fixture.events, null).len);
}

test "reactor: many connections are told apart by their tokens" {
    var fixture = try Fixture.init();
    defer fixture.deinit();
    var pairs: [64][2]sys.Fd = undefined;
    for (&pairs, 0..) |*pair, index| {
        pair.* = try sys.socket_pair();
        try fixture.reactor.register(pair[0], index);
    }
    defer for (pairs) |pair| {
        sys.close(pair[0]);
        sys.close(pair[1]);
    };
    while (fixture.reactor.poll(&fixture.events, 0).len != 0) {}
    for (pairs, 0..) |pair, index| if (index % 3 == 0) {
        _ = try sys.send(pair[1], "x");
    };
    var readable: [64]bool = @splat(false);
    while (true) {
        const events = fixture.reactor.poll(&fixture.events, 100 * ms);
        if (events.len == 0) break;
        for (events) |event| {
            if (event.readable) readable[@intCast(event.token)] = true;
        }
    }
    for (readable, 0..) |seen, index| try testing.expectEqual(index % 3 == 0, seen);
}

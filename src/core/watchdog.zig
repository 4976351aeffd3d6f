//! The service manager's watchdog (WatchdogSec= of systemd): a datagram while /livez is 200.
//!
//! The admin thread owns it and sends: it needs neither the GIL nor a worker, so a handler that
//! computes does not look like a process that hangs, and a process that hangs is not kept alive by
//! a thread that happens to run. GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");

/// sd_notify(3)
const message = "WATCHDOG=1";

pub const Watchdog = struct {
    /// A datagram socket that is connected to the service manager, not blocking; or `no_fd`.
    fd: sys.Fd,
    /// How often to send; 0: never.
    period_ms: u64,
    next_ms: u64 = 0,

    /// When `feed` has something to do again; null for never.
    pub fn due_ms(self: *const Watchdog) ?u64 {
        return if (self.fd == sys.no_fd or self.period_ms == 0) null else self.next_ms;
    }

    /// Sends the message where it is due and the process lives.
    pub fn feed(self: *Watchdog, now_ms: u64, lives: bool) void {
        const due = self.due_ms() orelse return;
        if (now_ms < due) return;
        self.next_ms = now_ms + self.period_ms;
        if (!lives) return;
        _ = sys.send(self.fd, message) catch {
            // The manager's queue is full, or the manager starts anew: try again well before it
            // loses patience, which is after two periods.
            self.next_ms = now_ms + @max(1, self.period_ms / 8);
        };
    }

    pub fn close(self: *Watchdog) void {
        if (self.fd != sys.no_fd) sys.close(self.fd);
        self.fd = sys.no_fd;
    }
};

const testing = std.testing;

fn expect_fed(fd: sys.Fd, is_expected: bool) !void {
    var bytes: [64]u8 = undefined;
    const count = sys.recv(fd, &bytes) catch |err| {
        try testing.expectEqual(error.WouldBlock, err);
        return testing.expect(!is_expected);
    };
    try testing.expectEqualStrings(message, bytes[0..count]);
    try testing.expect(is_expected);
}

test "watchdog: fed once a period, and only while the process lives" {
    const pair = try sys.socket_pair();
    defer sys.close(pair[1]);
    var watchdog: Watchdog = .{ .fd = pair[0], .period_ms = 500 };
    watchdog.feed(10_000, true);
    try expect_fed(pair[1], true);
    try testing.expectEqual(10_500, watchdog.due_ms());
    watchdog.feed(10_499, true);
    try expect_fed(pair[1], false);
    watchdog.feed(10_500, false);
    try expect_fed(pair[1], false);
    watchdog.feed(11_000, true);
    try expect_fed(pair[1], true);
    watchdog.close();
    try testing.expectEqual(null, watchdog.due_ms());
    watchdog.feed(20_000, true);
}

test "watchdog: what could not be sent is sent again before the time is over" {
    const pair = try sys.socket_pair();
    sys.close(pair[1]);
    var watchdog: Watchdog = .{ .fd = pair[0], .period_ms = 800 };
    defer watchdog.close();
    watchdog.feed(1000, true);
    try testing.expectEqual(1100, watchdog.due_ms());
}

test "watchdog: without a manager it does nothing" {
    var watchdog: Watchdog = .{ .fd = sys.no_fd, .period_ms = 500 };
    try testing.expectEqual(null, watchdog.due_ms());
    watchdog.feed(1, true);
    watchdog.close();
}

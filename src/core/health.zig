//! Whether the process lives and is ready: what /livez and /readyz say, and why.
//!
//! `Stage` is where the process is between its start and its end; `Watch` decides whether it is
//! stuck. Both are told what happened and when, so that they are tested without a server. The watch
//! belongs to the admin thread; what it found is in `Health`, which any thread may read. GIL: not
//! needed.

const std = @import("std");

/// In the order in which they come.
pub const Stage = enum(u8) {
    importing,
    startup,
    starting,
    serving,
    shutdown,

    pub fn describe(self: Stage) []const u8 {
        return switch (self) {
            .importing => "importing the application",
            .startup => "running app.startup",
            .starting => "starting the workers",
            .serving => "serving",
            .shutdown => "the drain is over",
        };
    }
};

/// A health check on a main listener (`admin.in_band`).
pub const Probe = enum {
    livez,
    readyz,

    /// What a request asks for, if it is a health check.
    pub fn of(prefix: []const u8, method: []const u8, path: []const u8) ?Probe {
        if (prefix.len == 0 or !std.mem.startsWith(u8, path, prefix)) return null;
        const is_read = std.mem.eql(u8, method, "GET") or std.mem.eql(u8, method, "HEAD");
        return if (is_read) std.meta.stringToEnum(Probe, path[prefix.len..]) else null;
    }
};

/// What both the main listeners' poller and the admin thread answer from.
pub const Health = struct {
    /// A signal has come that will drain the server, or a limit has been reached. Before the drain
    /// begins, so that balancers stop sending while connections are still accepted.
    leaving: std.atomic.Value(bool) = .init(false),
    /// A signal has come that Python has not seen yet, since the GIL is held.
    signalled: std.atomic.Value(bool) = .init(false),
    /// For how long nothing has moved; 0 as long as the process lives.
    stalled_ms: std.atomic.Value(u64) = .init(0),

    pub fn is_leaving(self: *const Health) bool {
        return self.leaving.load(.acquire) or self.signalled.load(.acquire);
    }
};

/// What can be seen of the scheduler in one look.
pub const Pulse = struct {
    /// Changes with every request that begins or ends.
    progress: u64,
    /// Requests that no thread has taken yet.
    waiting: u32,
    /// Requests that have waited too long and were answered 503.
    shed: u64 = 0,
    /// A further request would be answered 503.
    is_full: bool,
};

/// Tells a process that is stuck from one that is busy or waits for something else.
///
/// Handlers that all wait for a database look like a standstill too, but there the GIL can be
/// taken, and a restart would mend nothing. So both must be: no request begins or ends while some
/// wait, and a thread that asks for the GIL does not get it.
pub const Watch = struct {
    stall_ms: u64,
    progress: u64 = 0,
    /// Since when requests wait and none begins or ends. One that was shed waits still: it came
    /// to nothing, and `queue_timeout` may be shorter than `stall_ms`.
    still_since_ms: ?u64 = null,
    /// How many had been shed before that.
    shed_before: u64 = 0,
    /// When a thread was told to take the GIL and has not come back.
    asked_ms: ?u64 = null,

    /// Takes a look in; true when a thread shall be told to take the GIL.
    pub fn observe(self: *Watch, now_ms: u64, pulse: Pulse) bool {
        const nobody_waited = pulse.waiting == 0 and
            (pulse.shed == self.shed_before or self.asked_ms == null);
        if (nobody_waited or pulse.progress != self.progress) {
            self.still_since_ms = null;
            self.shed_before = pulse.shed;
            self.progress = pulse.progress;
        }
        if (pulse.waiting == 0) return false;
        if (self.still_since_ms == null) {
            self.still_since_ms = now_ms;
            return false;
        }
        if (self.asked_ms != null) return false;
        self.asked_ms = now_ms;
        return true;
    }

    /// The thread that was told to has taken the GIL.
    pub fn took_gil(self: *Watch) void {
        self.asked_ms = null;
    }

    /// For how long the process has been stuck; 0 when it is not.
    pub fn stalled_ms(self: *const Watch, now_ms: u64) u64 {
        const still_ms = now_ms -| (self.still_since_ms orelse return 0);
        const unanswered_ms = now_ms -| (self.asked_ms orelse return 0);
        const both_ms = @min(still_ms, unanswered_ms);
        return if (both_ms >= self.stall_ms) both_ms else 0;
    }

    /// How often to look, so that a stall is seen in time.
    pub fn period_ms(self: *const Watch) u64 {
        return std.math.clamp(self.stall_ms / 10, 10, 1000);
    }
};

const testing = std.testing;

fn waiting(progress: u64) Pulse {
    return .{ .progress = progress, .waiting = 3, .is_full = false };
}

test "health: nothing moves and the GIL cannot be taken" {
    var watch: Watch = .{ .stall_ms = 1000 };
    try testing.expect(!watch.observe(100, waiting(7)));
    try testing.expect(watch.observe(200, waiting(7)));
    try testing.expect(!watch.observe(300, waiting(7)));
    try testing.expectEqual(0, watch.stalled_ms(1199));
    try testing.expectEqual(1000, watch.stalled_ms(1200));
    watch.took_gil();
    try testing.expectEqual(0, watch.stalled_ms(1200));
}

test "health: handlers that wait for something else are no stall" {
    var watch: Watch = .{ .stall_ms = 1000 };
    _ = watch.observe(100, waiting(7));
    var now_ms: u64 = 200;
    while (now_ms < 100_000) : (now_ms += 100) {
        if (watch.observe(now_ms, waiting(7))) watch.took_gil();
        try testing.expectEqual(0, watch.stalled_ms(now_ms));
    }
}

test "health: a GIL that nobody else wants may be held" {
    var watch: Watch = .{ .stall_ms = 1000 };
    _ = watch.observe(100, waiting(7));
    _ = watch.observe(200, waiting(7));
    try testing.expect(!watch.observe(300, .{ .progress = 7, .waiting = 0, .is_full = false }));
    try testing.expectEqual(0, watch.stalled_ms(5000));
    // The thread still waits for the GIL: it is not told twice.
    _ = watch.observe(5100, waiting(7));
    try testing.expect(!watch.observe(5200, waiting(7)));
    try testing.expectEqual(0, watch.stalled_ms(6000));
    try testing.expectEqual(1000, watch.stalled_ms(6100));
}

test "health: requests that were shed waited" {
    var watch: Watch = .{ .stall_ms = 1000 };
    const shed: Pulse = .{ .progress = 7, .waiting = 0, .shed = 3, .is_full = false };
    _ = watch.observe(100, waiting(7));
    _ = watch.observe(200, waiting(7));
    _ = watch.observe(500, shed);
    try testing.expectEqual(0, watch.stalled_ms(1000));
    try testing.expectEqual(1000, watch.stalled_ms(1200));
    watch.took_gil();
    try testing.expectEqual(0, watch.stalled_ms(1300));
    _ = watch.observe(1400, shed);
    // Those before are no reason for the next time.
    _ = watch.observe(1500, .{ .progress = 7, .waiting = 1, .shed = 3, .is_full = false });
    _ = watch.observe(1600, .{ .progress = 7, .waiting = 1, .shed = 3, .is_full = false });
    _ = watch.observe(1700, shed);
    try testing.expectEqual(0, watch.stalled_ms(9000));
}

test "health: a request that ends is a sign of life" {
    var watch: Watch = .{ .stall_ms = 1000 };
    _ = watch.observe(100, waiting(7));
    _ = watch.observe(200, waiting(7));
    _ = watch.observe(1100, waiting(8));
    try testing.expectEqual(0, watch.stalled_ms(1300));
}

test "health: which requests are health checks" {
    try testing.expectEqual(.livez, Probe.of("/-/", "GET", "/-/livez"));
    try testing.expectEqual(.readyz, Probe.of("/-/", "HEAD", "/-/readyz"));
    try testing.expectEqual(null, Probe.of("/-/", "POST", "/-/readyz"));
    try testing.expectEqual(null, Probe.of("/-/", "GET", "/-/status"));
    try testing.expectEqual(null, Probe.of("/-/", "GET", "/livez"));
    try testing.expectEqual(null, Probe.of("", "GET", "livez"));
}

test "health: it looks often enough" {
    try testing.expectEqual(10, (Watch{ .stall_ms = 1 }).period_ms());
    try testing.expectEqual(1000, (Watch{ .stall_ms = 30_000 }).period_ms());
}

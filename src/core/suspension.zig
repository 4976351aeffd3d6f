//! A response that waits for the application's own event: nobody runs it until another thread says
//! `resume`, a descriptor is ready or a time has passed.
//!
//! Made by the worker that runs the request, given to the exchange when the response parks, ended
//! by the poller. The application's `resume` may outlive the request, so a suspension is counted
//! and finds its connection again by the token, which is stale by then. `state` is the one field
//! that any thread may change. GIL: not needed.

const std = @import("std");
const forks = @import("forks.zig");
const sys = @import("sys.zig");
const Connection = @import("connection.zig").Connection;

pub const State = enum(u8) {
    /// Waits, or is about to.
    armed,
    resumed,
    /// Nothing waits for it any more.
    over,
};

/// Between two looks, where a thread waits that cannot be woken.
const wait_step_ms = 5;
/// No time of its own.
pub const never_ms = std.math.maxInt(u64);

pub const Suspension = struct {
    references: std.atomic.Value(u32) = .init(1),
    state: std.atomic.Value(State) = .init(.armed),
    /// Of the connection.
    token: u64,
    /// `monotonic_ms`, or `never_ms`.
    deadline_ms: u64,
    /// A duplicate of the application's descriptor, which may be closed, or be watched for others.
    watched: sys.Fd = sys.no_fd,
    what: sys.WaitFor = .readable,
    /// The next in the server's list of those that were resumed, which holds a reference.
    next: ?*Suspension = null,

    pub fn create(
        gpa: std.mem.Allocator,
        token: u64,
        timeout_ms: ?u64,
    ) error{OutOfMemory}!*Suspension {
        const self = try gpa.create(Suspension);
        // By the precise clock, and rounded up: the coarse one is behind, and a wait that ends
        // before its time surprises an application that looks at its own clock.
        const now_ms = sys.monotonic_ns() / std.time.ns_per_ms + 1;
        const deadline = if (timeout_ms) |time| now_ms +| time else never_ms;
        self.* = .{ .token = token, .deadline_ms = deadline };
        return self;
    }

    pub fn retain(self: *Suspension) *Suspension {
        _ = self.references.fetchAdd(1, .monotonic);
        return self;
    }

    pub fn release(self: *Suspension, gpa: std.mem.Allocator) void {
        if (self.references.fetchSub(1, .acq_rel) != 1) return;
        // In a forked process the number may be that of a file of its own.
        if (self.watched != sys.no_fd and !forks.is_child()) sys.close(self.watched);
        gpa.destroy(self);
    }

    /// Makes it resumed. Whether it was armed: then the caller tells the poller.
    pub fn begin_resume(self: *Suspension) bool {
        return self.state.cmpxchgStrong(.armed, .resumed, .seq_cst, .seq_cst) == null;
    }

    pub fn is_resumed(self: *const Suspension) bool {
        return self.state.load(.seq_cst) == .resumed;
    }

    /// Waits on the thread itself, for a producer that cannot park; whether the time was over. Ends
    /// when the client goes, too. GIL: not held.
    pub fn wait(self: *Suspension, connection: *const Connection) bool {
        while (!self.is_resumed() and sys.monotonic_ms() < self.deadline_ms) {
            if (self.watched == sys.no_fd) {
                sys.sleep_ms(wait_step_ms);
            } else if (sys.wait_ready(self.watched, self.what, wait_step_ms)) break;
            if (connection.client_has_gone()) break;
        } else return self.end();
        _ = self.end();
        return false;
    }

    /// Nobody waits any more. Whether its time was over before it was resumed.
    pub fn end(self: *Suspension) bool {
        return self.state.swap(.over, .seq_cst) == .armed;
    }
};

const testing = std.testing;

test "a suspension is resumed once and not after its end" {
    const suspension = try Suspension.create(testing.allocator, 7, 1000);
    defer suspension.release(testing.allocator);
    try testing.expect(suspension.deadline_ms != never_ms);
    try testing.expect(!suspension.is_resumed());
    try testing.expect(suspension.begin_resume());
    try testing.expect(!suspension.begin_resume());
    try testing.expect(suspension.is_resumed());
    try testing.expect(!suspension.end());
    try testing.expect(!suspension.begin_resume());

    const other = try Suspension.create(testing.allocator, 7, null);
    try testing.expectEqual(never_ms, other.deadline_ms);
    try testing.expect(other.end());
    try testing.expect(!other.begin_resume());
    other.release(testing.allocator);
}

test "a suspension does not end before its time" {
    for (0..20) |_| {
        const before_ns = sys.monotonic_ns();
        const suspension = try Suspension.create(testing.allocator, 7, 10);
        defer suspension.release(testing.allocator);
        const deadline_ns = suspension.deadline_ms * std.time.ns_per_ms;
        try testing.expect(deadline_ns >= before_ns + 10 * std.time.ns_per_ms);
        std.Thread.sleep(std.time.ns_per_ms);
    }
}

test "a suspension lives as long as its last holder, and closes what it watches" {
    const pair = try sys.socket_pair();
    defer sys.close(pair[1]);
    const suspension = try Suspension.create(testing.allocator, 7, null);
    suspension.watched = pair[0];
    const held = suspension.retain();
    suspension.release(testing.allocator);
    try testing.expect(!sys.wait_ready(pair[1], .readable, 1));
    held.release(testing.allocator);
    try testing.expect(sys.wait_ready(pair[1], .readable, 1000));
}

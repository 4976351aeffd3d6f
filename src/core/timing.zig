//! Where a request's time went: six phases that follow each other and leave nothing out.
//!
//! A mark moves through the request's life, and each step gives the time since the mark to one
//! phase. So the phases add up to the whole whatever happens, and a step costs one addition; the
//! clock is read by the callers, who share what they read. Pure. Owner: the request's exchange.
//! GIL: not needed.

const std = @import("std");

/// One word each in logs, metrics and code.
pub const Phase = enum(u8) {
    /// First byte received until the head is complete.
    head,
    /// Until the body is complete; later reads of a body that the application asks for, too.
    body,
    /// Until a worker takes it, but for `gil`; for a parked response that goes on, too: it may have
    /// to wait for its own thread.
    queue,
    /// That part of the wait in which the worker waited for the GIL.
    gil,
    /// Application call, iteration and close, but for waits for the client.
    app,
    /// The rest, until the kernel has the last byte.
    write,
};

pub const phase_count = @typeInfo(Phase).@"enum".fields.len;

/// Times are of `sys.monotonic_ns`.
pub const Timing = struct {
    began_ns: u64 = 0,
    /// Up to here the time is in a phase.
    mark_ns: u64 = 0,
    spent_ns: [phase_count]u64 = @splat(0),

    pub fn begin(self: *Timing, now_ns: u64) void {
        self.* = .{ .began_ns = now_ns, .mark_ns = now_ns };
    }

    /// The time since the mark belongs to `phase`. A moment before the mark (two threads read their
    /// clocks in another order than they act) counts as the mark.
    pub inline fn pass(self: *Timing, phase: Phase, now_ns: u64) void {
        self.spent_ns[@intFromEnum(phase)] += now_ns -| self.mark_ns;
        self.mark_ns = @max(self.mark_ns, now_ns);
    }

    /// The wait for a worker is over. From `attach_ns` to `attached_ns` a worker that was to empty
    /// the queue waited for the GIL; whoever was in the queue then waited for it, too.
    pub fn pass_wait(self: *Timing, attach_ns: u64, attached_ns: u64, now_ns: u64) void {
        if (attached_ns > self.mark_ns) {
            self.pass(.queue, @min(attach_ns, now_ns));
            self.pass(.gil, @min(attached_ns, now_ns));
        }
        self.pass(.queue, now_ns);
    }

    pub fn of(self: *const Timing, phase: Phase) u64 {
        return self.spent_ns[@intFromEnum(phase)];
    }

    pub fn total_ns(self: *const Timing) u64 {
        return self.mark_ns - self.began_ns;
    }
};

const testing = std.testing;

fn expect_sum(timing: *const Timing) !void {
    var sum: u64 = 0;
    for (timing.spent_ns) |spent| sum += spent;
    try testing.expectEqual(timing.total_ns(), sum);
}

test "timing: phases follow each other and add up" {
    var timing: Timing = .{};
    timing.begin(1000);
    timing.pass(.head, 1010);
    timing.pass(.body, 1030);
    timing.pass_wait(0, 0, 1060);
    timing.pass(.app, 1100);
    timing.pass(.write, 1150);
    timing.pass(.app, 1210);
    timing.pass(.write, 1280);
    const expected = [phase_count]u64{ 10, 20, 30, 0, 100, 120 };
    try testing.expectEqual(expected, timing.spent_ns);
    try testing.expectEqual(280, timing.total_ns());
    try expect_sum(&timing);
}

test "timing: the wait for the GIL is the part of the queue in which a worker waited" {
    // Queued at 100, taken at 200; the worker waited for the GIL from, until; what counts.
    const cases = [_][4]u64{
        .{ 120, 180, 40, 60 }, // in the middle
        .{ 120, 200, 20, 80 }, // until it took it
        .{ 50, 180, 20, 80 }, // since before it was queued
        .{ 50, 90, 100, 0 }, // all before it was queued
        .{ 0, 0, 100, 0 }, // not at all
        .{ 150, 150, 100, 0 },
        .{ 90, 250, 0, 100 }, // clocks out of order
    };
    for (cases) |case| {
        var timing: Timing = .{};
        timing.begin(100);
        timing.pass_wait(case[0], case[1], 200);
        try testing.expectEqual(case[2], timing.of(.queue));
        try testing.expectEqual(case[3], timing.of(.gil));
        try expect_sum(&timing);
    }
}

test "timing: a clock that lags takes nothing back" {
    var timing: Timing = .{};
    timing.begin(100);
    timing.pass(.head, 90);
    timing.pass(.app, 150);
    timing.pass(.write, 140);
    try testing.expectEqual(50, timing.total_ns());
    try expect_sum(&timing);
}

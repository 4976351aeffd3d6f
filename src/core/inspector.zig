//! Between the admin thread, which has no GIL, and the one Python thread that helps it.
//!
//! The admin thread asks: take the GIL (to see that it can be had), tell the Python stacks, say
//! that the start takes too long. The helper waits in `wait` without the GIL and answers when it
//! has it. Nobody waits for the helper: it may never get the GIL. Any thread; GIL: not needed.

const std = @import("std");
const Futex = std.Thread.Futex;

pub const Errand = enum {
    /// Only to take the GIL.
    probe,
    stacks,
    /// The application was not imported and started in time.
    late,
    stop,

    fn bit(self: Errand) u32 {
        return @as(u32, 1) << @intFromEnum(self);
    }
};

pub const Inspector = struct {
    gpa: std.mem.Allocator,
    /// A bit for each errand that is wanted; what the helper sleeps on.
    wanted: std.atomic.Value(u32) = .init(0),
    /// The helper has had the GIL since this was last taken.
    had_gil: std.atomic.Value(bool) = .init(false),
    mutex: std.Thread.Mutex = .{},
    /// The answer to `stacks`.
    text: ?[]u8 = null,

    pub fn deinit(self: *Inspector) void {
        if (self.text) |text| self.gpa.free(text);
        self.text = null;
    }

    // ---- The admin thread ----------------------------------------------------------------------

    pub fn ask(self: *Inspector, errand: Errand) void {
        _ = self.wanted.fetchOr(errand.bit(), .acq_rel);
        Futex.wake(&self.wanted, 1);
    }

    /// The answer that has come since, if one has; the caller frees it.
    pub fn take_text(self: *Inspector) ?[]u8 {
        self.mutex.lock();
        defer self.mutex.unlock();
        defer self.text = null;
        return self.text;
    }

    // ---- The helper ----------------------------------------------------------------------------

    /// Waits for something to do; without the GIL.
    pub fn wait(self: *Inspector) Errand {
        while (true) {
            const wanted = self.wanted.load(.acquire);
            if (wanted == 0) {
                Futex.wait(&self.wanted, 0);
                continue;
            }
            for ([_]Errand{ .stop, .late, .stacks, .probe }) |errand| {
                if (wanted & errand.bit() == 0) continue;
                _ = self.wanted.fetchAnd(~errand.bit(), .acq_rel);
                return errand;
            }
        }
    }

    /// The helper has the GIL.
    pub fn note_gil(self: *Inspector) void {
        self.had_gil.store(true, .release);
    }

    pub fn answer(self: *Inspector, text: []const u8) error{OutOfMemory}!void {
        const copy = try self.gpa.dupe(u8, text);
        self.mutex.lock();
        defer self.mutex.unlock();
        if (self.text) |old| self.gpa.free(old);
        self.text = copy;
    }
};

const testing = std.testing;

test "inspector: errands are done one by one, the most urgent first, and once" {
    var inspector: Inspector = .{ .gpa = testing.allocator };
    defer inspector.deinit();
    inspector.ask(.probe);
    inspector.ask(.probe);
    inspector.ask(.stacks);
    try testing.expectEqual(Errand.stacks, inspector.wait());
    try testing.expectEqual(Errand.probe, inspector.wait());
    try testing.expectEqual(0, inspector.wanted.load(.acquire));
}

test "inspector: an answer is taken once, the newest" {
    var inspector: Inspector = .{ .gpa = testing.allocator };
    defer inspector.deinit();
    try inspector.answer("old");
    try inspector.answer("new");
    const text = inspector.take_text().?;
    defer testing.allocator.free(text);
    try testing.expectEqualStrings("new", text);
    try testing.expectEqual(null, inspector.take_text());
}

test "inspector: a helper that sleeps is woken" {
    var inspector: Inspector = .{ .gpa = testing.allocator };
    defer inspector.deinit();
    const helper = try std.Thread.spawn(.{}, struct {
        fn run(one: *Inspector) void {
            while (one.wait() != .stop) one.note_gil();
        }
    }.run, .{&inspector});
    inspector.ask(.probe);
    for (0..5000) |_| {
        if (inspector.had_gil.load(.acquire)) break;
        std.Thread.sleep(std.time.ns_per_ms);
    }
    inspector.ask(.stop);
    helper.join();
    try testing.expect(inspector.had_gil.load(.acquire));
}

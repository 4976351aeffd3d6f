//! Which connection has to be looked at next, and when: a heap of times, at most one a connection.
//!
//! An entry may be earlier than the deadline it stands for. A connection whose deadline moves back
//! (each request does that) leaves its entry alone; when the entry comes up, the poller looks at
//! the real deadline and puts the entry back. A request thus costs nothing here. Owner: the poller
//! (the thread that holds the baton). No memory is allocated after `init`.

const std = @import("std");
const pages = @import("pages.zig");

pub const Entry = struct { time_ms: u64, index: u32 };

pub const Deadlines = struct {
    entries: []Entry,
    count: u32 = 0,
    /// Where each connection's entry is, by slot index: its position and one, or 0 for none.
    places: []u32,

    pub fn init(capacity: u32) error{OutOfMemory}!Deadlines {
        const entries = try pages.alloc(Entry, capacity);
        errdefer pages.free(entries);
        return .{ .entries = entries, .places = try pages.alloc(u32, capacity) };
    }

    pub fn deinit(self: *Deadlines) void {
        pages.free(self.entries);
        pages.free(self.places);
    }

    /// Makes sure that the slot comes up at `time_ms` or before.
    pub fn ensure(self: *Deadlines, index: u32, time_ms: u64) void {
        const place = self.places[index];
        if (place == 0) {
            const last = self.count;
            self.count += 1;
            self.entries[last] = .{ .time_ms = time_ms, .index = index };
            self.places[index] = last + 1;
            self.sift_up(last);
        } else if (self.entries[place - 1].time_ms > time_ms) {
            self.entries[place - 1].time_ms = time_ms;
            self.sift_up(place - 1);
        }
    }

    pub fn remove(self: *Deadlines, index: u32) void {
        const place = self.places[index];
        if (place == 0) return;
        const position = place - 1;
        self.places[index] = 0;
        self.count -= 1;
        if (position == self.count) return;
        const moved = self.entries[self.count];
        self.entries[position] = moved;
        self.places[moved.index] = place;
        self.sift_up(position);
        self.sift_down(self.places[moved.index] - 1);
    }

    /// The earliest time of all.
    pub fn next_ms(self: *const Deadlines) ?u64 {
        return if (self.count == 0) null else self.entries[0].time_ms;
    }

    /// Takes out a slot whose time is `now_ms` or before.
    pub fn take_due(self: *Deadlines, now_ms: u64) ?u32 {
        if (self.count == 0 or self.entries[0].time_ms > now_ms) return null;
        const index = self.entries[0].index;
        self.remove(index);
        return index;
    }

    fn sift_up(self: *Deadlines, from: u32) void {
        var position = from;
        while (position > 0) {
            const parent = (position - 1) / 2;
            if (self.entries[parent].time_ms <= self.entries[position].time_ms) return;
            self.swap(parent, position);
            position = parent;
        }
    }

    fn sift_down(self: *Deadlines, from: u32) void {
        var position = from;
        while (true) {
            var least = position;
            for ([2]u32{ 2 * position + 1, 2 * position + 2 }) |child| {
                if (child >= self.count) continue;
                if (self.entries[child].time_ms < self.entries[least].time_ms) least = child;
            }
            if (least == position) return;
            self.swap(least, position);
            position = least;
        }
    }

    fn swap(self: *Deadlines, a: u32, b: u32) void {
        std.mem.swap(Entry, &self.entries[a], &self.entries[b]);
        self.places[self.entries[a].index] = a + 1;
        self.places[self.entries[b].index] = b + 1;
    }
};

const testing = std.testing;

test "deadlines come up in order of time" {
    var deadlines = try Deadlines.init(8);
    defer deadlines.deinit();
    try testing.expectEqual(null, deadlines.next_ms());
    for ([_]u64{ 50, 10, 40, 20, 30 }, 0..) |time, index| deadlines.ensure(@intCast(index), time);
    try testing.expectEqual(10, deadlines.next_ms().?);
    try testing.expectEqual(null, deadlines.take_due(9));
    for ([_]u32{ 1, 3, 4, 2, 0 }) |index| {
        try testing.expectEqual(index, deadlines.take_due(50).?);
    }
    try testing.expectEqual(null, deadlines.take_due(1000));
}

test "a deadline moves to an earlier time and not to a later one" {
    var deadlines = try Deadlines.init(4);
    defer deadlines.deinit();
    deadlines.ensure(0, 100);
    deadlines.ensure(1, 50);
    deadlines.ensure(0, 20);
    deadlines.ensure(1, 500);
    try testing.expectEqual(20, deadlines.next_ms().?);
    deadlines.remove(0);
    try testing.expectEqual(50, deadlines.next_ms().?);
}

test "a heap under random use agrees with a plain search" {
    const capacity = 32;
    var deadlines = try Deadlines.init(capacity);
    defer deadlines.deinit();
    var model: [capacity]?u64 = @splat(null);
    var prng = std.Random.DefaultPrng.init(7);
    const random = prng.random();
    for (0..20_000) |_| {
        const index = random.uintLessThan(u32, capacity);
        switch (random.uintLessThan(u8, 3)) {
            0 => {
                const time = random.uintLessThan(u64, 1000);
                deadlines.ensure(index, time);
                model[index] = @min(model[index] orelse time, time);
            },
            1 => {
                deadlines.remove(index);
                model[index] = null;
            },
            else => {
                var least: ?u64 = null;
                for (model) |time| {
                    if (time) |value| least = @min(least orelse value, value);
                }
                try testing.expectEqual(least, deadlines.next_ms());
                const now = random.uintLessThan(u64, 1000);
                if (deadlines.take_due(now)) |due| {
                    try testing.expectEqual(least.?, model[due].?);
                    try testing.expect(least.? <= now);
                    model[due] = null;
                } else try testing.expect(least == null or least.? > now);
            },
        }
    }
}

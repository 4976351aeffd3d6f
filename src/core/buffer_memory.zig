//! How much of what clients send and do not take is held in memory, for all of them together.
//!
//! Each request has limits of its own (`limits.head`, `body_memory`, `response_memory`); ten
//! thousand clients that use them up together would take all the memory there is. So it is counted,
//! and where it is more than `bytes_max` the server holds less for each: bodies go on in files, and
//! nothing is made ahead of a client. Counted are the bytes of buffers that grow with what comes
//! and stays; those that every connection in progress has (`exchange.buffer_bytes`) are bounded by
//! their number. Owner: the server. Any thread; GIL: not needed.

const std = @import("std");

pub const BufferMemory = struct {
    bytes_max: u64,
    bytes: std.atomic.Value(u64) = .init(0),

    /// Of a response, ahead of its client, when there is no room: a piece or two.
    pub const ahead_bytes_min = 64 * 1024;

    pub fn add(self: *BufferMemory, count: usize) void {
        _ = self.bytes.fetchAdd(count, .monotonic);
    }

    pub fn remove(self: *BufferMemory, count: usize) void {
        _ = self.bytes.fetchSub(count, .monotonic);
    }

    /// Whether more may be held of what can be elsewhere or come later.
    pub fn has_room(self: *const BufferMemory) bool {
        return self.bytes.load(.monotonic) < self.bytes_max;
    }

    /// Whether more may be held of heads, which can be nowhere else. As much again is theirs, so
    /// that bodies do not keep them out.
    pub fn has_room_for_heads(self: *const BufferMemory) bool {
        return self.bytes.load(.monotonic) < self.bytes_max *| 2;
    }

    /// How much of a response may be ahead of its client, where `limit` is allowed for one.
    pub fn ahead_max(self: *const BufferMemory, limit: usize) usize {
        return if (self.has_room()) limit else @min(limit, ahead_bytes_min);
    }
};

test "what is held beyond the limit makes less of each response, then of heads" {
    const testing = std.testing;
    var held: BufferMemory = .{ .bytes_max = 1000 };
    held.add(999);
    try testing.expect(held.has_room());
    try testing.expectEqual(1024 * 1024, held.ahead_max(1024 * 1024));
    held.add(1);
    try testing.expect(!held.has_room());
    try testing.expectEqual(64 * 1024, held.ahead_max(1024 * 1024));
    try testing.expectEqual(100, held.ahead_max(100));
    held.add(999);
    try testing.expect(held.has_room_for_heads());
    held.add(1);
    try testing.expect(!held.has_room_for_heads());
    held.remove(1001);
    try testing.expect(held.has_room());
}

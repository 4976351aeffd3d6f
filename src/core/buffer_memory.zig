//! How much of what clients send and do not take is held in memory, for all of them together.
//!
//! Each request has limits of its own (`limits.head`, `body_memory`, `response_memory`); ten
//! thousand clients that use them up together would take all the memory there is. So it is counted.
//! Past `bytes_max` the server holds less for each: bodies go on in files, and nothing is made far
//! ahead of a client. Past twice as much bodies are refused. Heads have a count of their own, since
//! they can be nowhere else and bodies must not keep them out; past it those that need more than
//! their first buffer are refused.
//!
//! Counted are buffers that grow with what comes and stays. Not counted are those that every
//! request in progress has (`exchange.buffer_bytes`), and pieces of a response that stay where the
//! application has them. Owner: the server. Any thread; GIL: not needed.

const std = @import("std");

pub const BufferMemory = struct {
    bytes_max: u64,
    head_bytes_max: u64,
    bytes: std.atomic.Value(u64) = .init(0),
    head_bytes: std.atomic.Value(u64) = .init(0),

    /// What a body or a response may take when there is no room. A file for less would let a client
    /// use up the descriptors with little.
    pub const each_bytes_min = 64 * 1024;

    pub fn init(bytes_max: u64) BufferMemory {
        return .{ .bytes_max = bytes_max, .head_bytes_max = bytes_max };
    }

    pub fn add(self: *BufferMemory, count: usize) void {
        _ = self.bytes.fetchAdd(count, .monotonic);
    }

    pub fn remove(self: *BufferMemory, count: usize) void {
        _ = self.bytes.fetchSub(count, .monotonic);
    }

    pub fn add_head(self: *BufferMemory, count: usize) void {
        _ = self.head_bytes.fetchAdd(count, .monotonic);
    }

    pub fn remove_head(self: *BufferMemory, count: usize) void {
        _ = self.head_bytes.fetchSub(count, .monotonic);
    }

    /// All that is counted.
    pub fn total(self: *const BufferMemory) u64 {
        return self.bytes.load(.monotonic) + self.head_bytes.load(.monotonic);
    }

    pub fn has_room(self: *const BufferMemory) bool {
        return self.bytes.load(.monotonic) < self.bytes_max;
    }

    /// Whether a body may begin that needs memory.
    pub fn takes_bodies(self: *const BufferMemory) bool {
        return self.bytes.load(.monotonic) < self.bytes_max *| 2;
    }

    /// Whether a head may have a larger buffer.
    pub fn takes_heads(self: *const BufferMemory) bool {
        return self.head_bytes.load(.monotonic) < self.head_bytes_max;
    }

    /// How much one body, or one response, may take where `limit` is what one is allowed.
    pub fn share(self: *const BufferMemory, limit: usize) usize {
        return if (self.has_room()) limit else @min(limit, each_bytes_min);
    }

    /// The same of a response that holds its thread when it may take no more.
    pub fn share_of_waiting(self: *const BufferMemory, limit: usize) usize {
        return if (self.takes_bodies()) limit else @min(limit, each_bytes_min);
    }
};

test "past the limit each gets less, past twice as much bodies are refused, and heads never mind" {
    const testing = std.testing;
    const limit = 1024 * 1024;
    var memory: BufferMemory = .init(1000);
    memory.add(999);
    try testing.expect(memory.has_room());
    try testing.expectEqual(limit, memory.share(limit));
    memory.add(1);
    try testing.expect(!memory.has_room());
    try testing.expectEqual(64 * 1024, memory.share(limit));
    try testing.expectEqual(limit, memory.share_of_waiting(limit));
    try testing.expectEqual(100, memory.share(100));
    memory.add(999);
    try testing.expect(memory.takes_bodies());
    memory.add(1);
    try testing.expect(!memory.takes_bodies());
    try testing.expectEqual(64 * 1024, memory.share_of_waiting(limit));
    memory.add_head(999);
    try testing.expect(memory.takes_heads());
    memory.add_head(1);
    try testing.expect(!memory.takes_heads());
    try testing.expectEqual(3000, memory.total());
    memory.remove_head(1);
    memory.remove(1001);
    try testing.expect(memory.has_room() and memory.takes_heads());
}

//! One request and its response while they are in progress: the bytes received, the parsed head, the
//! body and what of the response could not be sent yet.
//!
//! An idle connection has none, which is what makes ten thousand of them cheap. Exchanges come from
//! a pool and go back to it; a buffer that a large head made grow shrinks again then. Owner: whoever
//! owns the connection. The pool: any thread, under its mutex.

const std = @import("std");
const request_head = @import("request_head.zig");
const predictor = @import("predictor.zig");
const Body = @import("body.zig").Body;
const RequestHead = request_head.RequestHead;
const FieldLine = request_head.FieldLine;

/// Of the buffer that every exchange begins with: a head, and small bodies whole. What a client does
/// not fill is never touched and so costs no memory.
pub const buffer_bytes = 16 * 1024;

pub const Exchange = struct {
    next: ?*Exchange = null,
    head: RequestHead,
    /// What was received and not yet done with is at the front.
    bytes: []u8,
    received: u32 = 0,
    /// Where this request ends in `bytes`; what follows belongs to the next one.
    request_end: u32 = 0,
    body: Body = .{},
    output: Output = .{},
    route: predictor.Route = 0,
    /// What the pool gave as `bytes`.
    own_bytes: []u8,

    /// Makes room for at least `space` more bytes behind what was received.
    pub fn ensure_space(
        self: *Exchange,
        gpa: std.mem.Allocator,
        space: usize,
    ) error{OutOfMemory}!void {
        const needed = self.received + space;
        if (needed <= self.bytes.len) return;
        const size = std.math.ceilPowerOfTwo(usize, needed) catch return error.OutOfMemory;
        const larger = try gpa.alloc(u8, size);
        @memcpy(larger[0..self.received], self.bytes[0..self.received]);
        self.release_bytes(gpa);
        self.bytes = larger;
    }

    fn release_bytes(self: *Exchange, gpa: std.mem.Allocator) void {
        if (self.bytes.ptr != self.own_bytes.ptr) gpa.free(self.bytes);
        self.bytes = self.own_bytes;
    }

    /// Forgets the request that was answered and keeps what the client sent after it.
    pub fn begin_next(self: *Exchange, gpa: std.mem.Allocator) void {
        self.body.deinit(gpa);
        self.body = .{};
        const rest = self.bytes[self.request_end..self.received];
        std.mem.copyForwards(u8, self.bytes[0..rest.len], rest);
        self.received = @intCast(rest.len);
        self.request_end = 0;
        self.head.reset();
    }

    /// Whether bytes of a next request are there already.
    pub fn has_more(self: *const Exchange) bool {
        return self.request_end < self.received;
    }
};

/// Response bytes that the socket did not take yet.
pub const Output = struct {
    buffer: []u8 = &.{},
    start: usize = 0,
    end: usize = 0,

    pub fn pending(self: *const Output) []const u8 {
        return self.buffer[self.start..self.end];
    }

    pub fn append(
        self: *Output,
        gpa: std.mem.Allocator,
        bytes: []const u8,
    ) error{OutOfMemory}!void {
        if (self.buffer.len - self.end < bytes.len) try self.make_room(gpa, bytes.len);
        @memcpy(self.buffer[self.end..][0..bytes.len], bytes);
        self.end += bytes.len;
    }

    fn make_room(self: *Output, gpa: std.mem.Allocator, space: usize) error{OutOfMemory}!void {
        const kept = self.end - self.start;
        if (self.buffer.len - kept < space) {
            const size = std.math.ceilPowerOfTwo(usize, kept + space) catch
                return error.OutOfMemory;
            const larger = try gpa.alloc(u8, size);
            @memcpy(larger[0..kept], self.pending());
            gpa.free(self.buffer);
            self.buffer = larger;
        } else {
            std.mem.copyForwards(u8, self.buffer[0..kept], self.pending());
        }
        self.start = 0;
        self.end = kept;
    }

    /// `count` of the pending bytes have been sent.
    pub fn discard(self: *Output, gpa: std.mem.Allocator, count: usize) void {
        self.start += count;
        if (self.start == self.end) self.deinit(gpa);
    }

    pub fn deinit(self: *Output, gpa: std.mem.Allocator) void {
        gpa.free(self.buffer);
        self.* = .{};
    }
};

pub const Pool = struct {
    gpa: std.mem.Allocator,
    field_lines_max: u16,
    mutex: std.Thread.Mutex = .{},
    free: ?*Exchange = null,
    /// All that were ever made; at most one a connection.
    made: u32 = 0,
    in_use: u32 = 0,

    pub fn deinit(self: *Pool) void {
        while (self.free) |exchange| {
            self.free = exchange.next;
            self.gpa.free(exchange.head.field_lines);
            std.heap.page_allocator.free(exchange.own_bytes);
            self.gpa.destroy(exchange);
        }
    }

    pub fn acquire(self: *Pool) error{OutOfMemory}!*Exchange {
        self.mutex.lock();
        if (self.free) |exchange| {
            self.free = exchange.next;
            self.in_use += 1;
            self.mutex.unlock();
            return exchange;
        }
        self.mutex.unlock();
        const exchange = try self.make();
        self.mutex.lock();
        self.made += 1;
        self.in_use += 1;
        self.mutex.unlock();
        return exchange;
    }

    fn make(self: *Pool) error{OutOfMemory}!*Exchange {
        const exchange = try self.gpa.create(Exchange);
        errdefer self.gpa.destroy(exchange);
        const lines = try self.gpa.alloc(FieldLine, self.field_lines_max);
        errdefer self.gpa.free(lines);
        // Whole pages that the kernel gives when they are first written to. Not filled with the
        // pattern of undefined memory, which would touch them all.
        const bytes = std.heap.page_allocator.rawAlloc(
            buffer_bytes,
            .fromByteUnits(std.heap.page_size_min),
            @returnAddress(),
        ) orelse return error.OutOfMemory;
        exchange.* = .{
            .head = .init(lines),
            .bytes = bytes[0..buffer_bytes],
            .own_bytes = bytes[0..buffer_bytes],
        };
        return exchange;
    }

    /// Takes an exchange back; nothing may point into it any more.
    pub fn release(self: *Pool, exchange: *Exchange) void {
        exchange.body.deinit(self.gpa);
        exchange.body = .{};
        if (exchange.output.buffer.len > 0) exchange.output.deinit(self.gpa);
        exchange.release_bytes(self.gpa);
        exchange.received = 0;
        exchange.request_end = 0;
        exchange.head.reset();
        self.mutex.lock();
        defer self.mutex.unlock();
        exchange.next = self.free;
        self.free = exchange;
        self.in_use -= 1;
    }
};

const testing = std.testing;

test "an exchange keeps the bytes of a pipelined request" {
    var pool: Pool = .{ .gpa = testing.allocator, .field_lines_max = 8 };
    defer pool.deinit();
    const exchange = try pool.acquire();
    defer pool.release(exchange);
    @memcpy(exchange.bytes[0..6], "abcdef");
    exchange.received = 6;
    exchange.request_end = 4;
    try testing.expect(exchange.has_more());
    exchange.begin_next(testing.allocator);
    try testing.expectEqualStrings("ef", exchange.bytes[0..exchange.received]);
}

test "a buffer grows with its bytes and is its old self in the pool" {
    var pool: Pool = .{ .gpa = testing.allocator, .field_lines_max = 8 };
    defer pool.deinit();
    const exchange = try pool.acquire();
    @memcpy(exchange.bytes[0..3], "abc");
    exchange.received = 3;
    try exchange.ensure_space(testing.allocator, 60_000);
    try testing.expect(exchange.bytes.len >= 60_003);
    try testing.expectEqualStrings("abc", exchange.bytes[0..3]);
    pool.release(exchange);
    const again = try pool.acquire();
    defer pool.release(again);
    try testing.expectEqual(exchange, again);
    try testing.expectEqual(buffer_bytes, again.bytes.len);
    try testing.expectEqual(1, pool.made);
}

test "output grows, moves up and frees itself" {
    var output: Output = .{};
    const gpa = testing.allocator;
    try output.append(gpa, "hello");
    output.discard(gpa, 2);
    try output.append(gpa, " world");
    try testing.expectEqualStrings("llo world", output.pending());
    output.discard(gpa, 9);
    try testing.expectEqual(0, output.buffer.len);
}

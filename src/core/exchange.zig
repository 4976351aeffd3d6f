//! One request and its response while they are in progress: the bytes received, the parsed head,
//! the body and what of the response could not be sent yet.
//!
//! An idle connection has none, which is what makes ten thousand of them cheap. Exchanges come from
//! a pool and go back to it; a buffer that a large head made grow shrinks again then. Owner:
//! whoever owns the connection. The pool: any thread, under its mutex.

const std = @import("std");
const forwarded = @import("forwarded.zig");
const request_head = @import("request_head.zig");
const sys = @import("sys.zig");
const target = @import("target.zig");
const pages = @import("pages.zig");
const request_ids = @import("request_id.zig");
const Connection = @import("connection.zig").Connection;
const Phase = @import("timing.zig").Phase;
const Progress = @import("reply.zig").Progress;
const Record = @import("record.zig").Record;
const Body = @import("body.zig").Body;
const BufferMemory = @import("buffer_memory.zig").BufferMemory;
const Suspension = @import("suspension.zig").Suspension;
const file_part = @import("file_part.zig");
const Multipart = @import("multipart.zig").Multipart;
const Answer = @import("static.zig").Answer;
const RequestHead = request_head.RequestHead;
const FieldLine = request_head.FieldLine;

/// Of the buffer that every exchange begins with: a head, and small bodies whole. What a client
/// does not fill is never touched and so costs no memory.
pub const buffer_bytes = 16 * 1024;

pub const Exchange = struct {
    next: ?*Exchange = null,
    head: RequestHead,
    /// What was received and not yet done with is at the front.
    bytes: []u8,
    received: u32 = 0,
    /// Where this request ends in `bytes`; what follows belongs to the next one.
    request_end: u32 = 0,
    /// What trusted proxies said of the client; null of a peer that is not trusted.
    claims: ?forwarded.Claims = null,
    body: Body = .{},
    output: Output = .{},
    /// The response is not finished and its producer has given its thread back: what the
    /// application's side needs to go on, and how far the reply was.
    continuation: ?*anyopaque = null,
    progress: Progress = .{},
    /// What a parked producer waits for beside its client; a reference.
    suspension: ?*Suspension = null,
    /// What the pool gave as `bytes`; empty while it has it back (`Pool.compact`).
    own_bytes: []u8,
    /// Where memory beyond that is counted, and how much of this head's is.
    buffer_memory: ?*BufferMemory = null,
    counted: usize = 0,
    /// For metrics and logs.
    record: Record = .{},
    /// The server's own id of the request `id_number`.
    id_text: [request_ids.own_bytes]u8,
    id_number: u64 = 0,
    // For in_flight.zig's list, under its mutex but for the owner's question whether it is in it.
    sending_connection: ?*Connection = null,
    next_sending: ?*Exchange = null,
    previous_sending: ?*Exchange = null,
    sending_phase: Phase = .write,

    /// What every line and field about the request in progress names it by. Its owner; valid as
    /// long as the request's head.
    pub fn request_id(self: *Exchange) []const u8 {
        const given = self.record.given_id;
        if (given.len > 0) return given.of(self.bytes);
        if (self.id_number != self.record.number) {
            self.id_number = self.record.number;
            const digits = self.id_text[request_ids.prefix_bytes..];
            request_ids.write_number(digits, self.id_number);
        }
        return &self.id_text;
    }

    /// Takes over what a trusted proxy says of the request whose head is complete: its id, and how
    /// long it has waited.
    pub fn believe(self: *Exchange, now_ms: u64) void {
        for (self.head.lines()) |line| switch (line.known) {
            .x_request_id => if (request_ids.is_acceptable(line.value.of(self.bytes))) {
                self.record.given_id = line.value;
            },
            .x_request_start, .x_queue_start => {
                const now_ns = now_ms * std.time.ns_per_ms;
                const waited_ns = request_ids.waited_ns(line.value.of(self.bytes), now_ns);
                self.record.waited_before_ns = @max(self.record.waited_before_ns, waited_ns);
            },
            else => {},
        };
    }

    /// Whether the request is for an https resource and comes from nobody who may ask for one here.
    /// RFC 9110 7.4: to be rejected but over a secured connection, which none of ours is, or from a
    /// trusted gateway, whatever that says of its client's connection.
    pub fn is_misdirected(self: *const Exchange) bool {
        if (self.claims != null or self.head.target_form != .absolute_form) return false;
        return target.is_https(self.head.target.of(self.bytes));
    }

    /// Of this request so far, transfer coding undone.
    pub fn bytes_received(self: *const Exchange) u64 {
        if (self.head.head_bytes == 0) return self.received;
        return self.head.head_bytes + self.body.length;
    }

    /// The id for whoever only keeps the owner from changing it. Returns the length.
    pub fn copy_request_id(self: *const Exchange, to: *[request_ids.given_bytes_max]u8) usize {
        const given = self.record.given_id.of(self.bytes);
        if (given.len > 0) {
            @memcpy(to[0..given.len], given);
            return given.len;
        }
        const prefix_bytes = request_ids.prefix_bytes;
        @memcpy(to[0..prefix_bytes], self.id_text[0..prefix_bytes]);
        const digits = to[prefix_bytes..request_ids.own_bytes];
        request_ids.write_number(digits, self.record.number);
        return request_ids.own_bytes;
    }

    /// Makes room for at least `space` more bytes behind what was received.
    pub fn ensure_space(
        self: *Exchange,
        gpa: std.mem.Allocator,
        space: usize,
    ) error{OutOfMemory}!void {
        const needed = self.received + space;
        if (needed <= self.bytes.len) return;
        const size = std.math.ceilPowerOfTwo(usize, needed) catch return error.OutOfMemory;
        if (self.buffer_memory) |memory| if (!memory.takes_heads()) return error.OutOfMemory;
        const larger = try gpa.alloc(u8, size);
        @memcpy(larger[0..self.received], self.bytes[0..self.received]);
        self.release_bytes(gpa);
        self.bytes = larger;
        const memory = self.buffer_memory orelse return;
        self.counted = larger.len;
        memory.add_head(self.counted);
    }

    fn release_bytes(self: *Exchange, gpa: std.mem.Allocator) void {
        if (self.bytes.ptr != self.own_bytes.ptr) gpa.free(self.bytes);
        self.bytes = self.own_bytes;
        if (self.buffer_memory) |memory| memory.remove_head(self.counted);
        self.counted = 0;
    }

    /// Forgets the request that was answered and keeps what the client sent after it.
    pub fn begin_next(self: *Exchange, gpa: std.mem.Allocator) void {
        self.body.deinit(gpa);
        self.body = .{};
        const rest = self.bytes[self.request_end..self.received];
        std.mem.copyForwards(u8, self.bytes[0..rest.len], rest);
        self.received = @intCast(rest.len);
        self.request_end = 0;
        self.claims = null;
        self.head.reset();
    }

    /// A response to HEAD has no body (RFC 9110 9.3.2).
    pub fn is_head_request(self: *const Exchange) bool {
        return std.mem.eql(u8, self.head.method.of(self.bytes), "HEAD");
    }

    /// Nothing came that matters: at the most an empty line, such as some clients send after a
    /// body (RFC 9112 2.2).
    pub fn is_blank(self: *const Exchange) bool {
        return self.head.is_idle() and self.received == self.head.line_start;
    }

    /// Whether bytes of a next request are there already.
    pub fn has_more(self: *const Exchange) bool {
        return self.request_end < self.received;
    }
};

/// What of a response the socket did not take yet, in order: copies in `buffer`, then one large
/// piece that stays where the application has it, then the few bytes that end its chunk, then a
/// part of a file.
pub const Output = struct {
    buffer: []u8 = &.{},
    /// Where that is counted.
    buffer_memory: ?*BufferMemory = null,
    start: usize = 0,
    end: usize = 0,
    /// Borrowed: whoever pins it keeps it alive until `is_empty`, and adds nothing before.
    pinned: []const u8 = "",
    tail: []const u8 = "",
    /// Its descriptor is closed when it has been sent.
    file: file_part.FilePart = .{},
    /// Further parts of the same file, and what stands between them.
    multipart: ?*Multipart = null,

    pub const pieces_max = 3;
    /// What comes before so little of a file waits for it, to leave in one packet with it.
    const shared_bytes_max = 32 * 1024;

    pub fn is_empty(self: *const Output) bool {
        return !self.has_bytes() and self.file.remaining == 0;
    }

    fn has_bytes(self: *const Output) bool {
        return self.start != self.end or self.pinned.len > 0 or self.tail.len > 0;
    }

    /// Sends once; what the socket took. Of a file at the most `file_bytes_max`, since it may take
    /// as much as its client does, for as long as the client likes.
    pub fn send(
        self: *Output,
        gpa: std.mem.Allocator,
        socket: sys.Fd,
        file_bytes_max: u64,
    ) file_part.SendError!usize {
        var count: usize = undefined;
        if (self.has_bytes()) {
            var storage: [pieces_max]sys.Iovec = undefined;
            const pieces = self.vector(&storage);
            // Before a long part a packet of its own costs little, and the client is awake when
            // the part comes: on one machine that takes a tenth off the server's time.
            const remaining = self.file.remaining;
            count = if (remaining > 0 and remaining <= shared_bytes_max)
                try sys.send_vector_before_more(socket, pieces)
            else
                try sys.send_vector(socket, pieces);
            self.discard(gpa, count);
        } else {
            count = try self.file.send(socket, file_bytes_max);
        }
        if (self.is_empty()) self.next_part();
        return count;
    }

    /// Takes over a response of the server's own; what it can it sends at once. The descriptor of
    /// its file is the output's from here, whatever happens.
    pub fn take(
        self: *Output,
        gpa: std.mem.Allocator,
        socket: sys.Fd,
        answer: Answer,
    ) (error{OutOfMemory} || sys.WriteError)!void {
        if (answer.multipart) |multipart| {
            errdefer multipart.destroy();
            errdefer sys.close(answer.file);
            try self.append(gpa, answer.bytes);
            return self.begin_parts(answer.file, multipart);
        }
        self.file = .{
            .fd = answer.file,
            .offset = answer.range.start,
            .remaining = answer.range.length,
        };
        const sent = sys.send(socket, answer.bytes) catch |err| switch (err) {
            error.WouldBlock => 0,
            else => return err,
        };
        if (sent < answer.bytes.len) try self.append(gpa, answer.bytes[sent..]);
    }

    /// Takes over a file, of which `multipart` tells the parts that are sent.
    pub fn begin_parts(self: *Output, file: sys.Fd, multipart: *Multipart) void {
        self.file = .{ .fd = file };
        self.multipart = multipart;
        self.next_part();
    }

    fn next_part(self: *Output) void {
        const multipart = self.multipart orelse return self.file.close();
        if (multipart.next()) |step| {
            self.pinned = step.text;
            self.file.offset = step.range.start;
            self.file.remaining = step.range.length;
        } else self.drop_file();
    }

    /// Nothing more of it is sent.
    pub fn drop_file(self: *Output) void {
        self.file.close();
        if (self.multipart) |multipart| multipart.destroy();
        self.multipart = null;
    }

    /// Bytes that take memory of ours.
    pub fn kept_bytes(self: *const Output) usize {
        return self.end - self.start;
    }

    /// All that is to be sent.
    pub fn vector(self: *const Output, storage: *[pieces_max]sys.Iovec) []sys.Iovec {
        var count: usize = 0;
        for ([_][]const u8{ self.buffer[self.start..self.end], self.pinned, self.tail }) |piece| {
            if (piece.len == 0) continue;
            storage[count] = .{ .base = piece.ptr, .len = piece.len };
            count += 1;
        }
        return storage[0..count];
    }

    pub fn append(
        self: *Output,
        gpa: std.mem.Allocator,
        bytes: []const u8,
    ) error{OutOfMemory}!void {
        std.debug.assert(self.pinned.len == 0);
        if (self.buffer.len - self.end < bytes.len) try self.make_room(gpa, bytes.len);
        @memcpy(self.buffer[self.end..][0..bytes.len], bytes);
        self.end += bytes.len;
    }

    fn make_room(self: *Output, gpa: std.mem.Allocator, space: usize) error{OutOfMemory}!void {
        const kept = self.kept_bytes();
        const pending = self.buffer[self.start..self.end];
        if (self.buffer.len - kept < space) {
            // By a quarter, so that the limits on what is kept are nearly those on memory.
            const needed = std.math.add(usize, kept, space) catch return error.OutOfMemory;
            const size = needed +| needed / 4;
            const larger = try gpa.alloc(u8, size);
            @memcpy(larger[0..kept], pending);
            gpa.free(self.buffer);
            if (self.buffer_memory) |memory| {
                memory.remove(self.buffer.len);
                memory.add(larger.len);
            }
            self.buffer = larger;
        } else {
            std.mem.copyForwards(u8, self.buffer[0..kept], pending);
        }
        self.start = 0;
        self.end = kept;
    }

    /// The first `count` of the pending bytes have been sent.
    pub fn discard(self: *Output, gpa: std.mem.Allocator, count: usize) void {
        const from_buffer = @min(count, self.kept_bytes());
        self.start += from_buffer;
        var left = count - from_buffer;
        const from_pinned = @min(left, self.pinned.len);
        self.pinned = self.pinned[from_pinned..];
        left -= from_pinned;
        self.tail = self.tail[left..];
        if (self.start == self.end) self.free_buffer(gpa);
    }

    fn free_buffer(self: *Output, gpa: std.mem.Allocator) void {
        if (self.buffer_memory) |memory| memory.remove(self.buffer.len);
        gpa.free(self.buffer);
        self.buffer = &.{};
        self.start = 0;
        self.end = 0;
    }

    pub fn deinit(self: *Output, gpa: std.mem.Allocator) void {
        self.free_buffer(gpa);
        self.drop_file();
        self.* = .{ .buffer_memory = self.buffer_memory };
    }
};

pub const Pool = struct {
    gpa: std.mem.Allocator,
    field_lines_max: u16,
    /// Where what the exchanges hold is counted.
    buffer_memory: ?*BufferMemory = null,
    /// What the ids of this process' requests begin with.
    id_prefix: [request_ids.prefix_bytes]u8 = @splat('0'),
    mutex: std.Thread.Mutex = .{},
    free: ?*Exchange = null,
    /// Buffers of compacted exchanges.
    spare: ?*Spare = null,
    /// All that were ever made; at most one a connection.
    made: u32 = 0,
    in_use: u32 = 0,

    /// What a compacted exchange gave back; it lies at the start of its own buffer.
    const Spare = struct { next: ?*Spare, bytes: []u8, field_lines: []FieldLine };

    pub fn deinit(self: *Pool) void {
        while (self.free) |exchange| {
            self.free = exchange.next;
            self.gpa.free(exchange.head.field_lines);
            if (exchange.own_bytes.len > 0) pages.free(exchange.own_bytes);
            self.gpa.destroy(exchange);
        }
        while (self.spare) |spare| {
            self.spare = spare.next;
            self.gpa.free(spare.field_lines);
            pages.free(spare.bytes);
        }
    }

    /// Keeps of a request that may last for hours only what it is: its head, in memory of the
    /// right size. The buffer goes back. Nothing happens where the buffer holds more.
    pub fn compact(self: *Pool, exchange: *Exchange) void {
        if (exchange.own_bytes.len == 0 or exchange.bytes.ptr != exchange.own_bytes.ptr) return;
        if (exchange.body.mode != .none or exchange.has_more()) return;
        const lines = self.gpa.dupe(FieldLine, exchange.head.lines()) catch return;
        const bytes = self.gpa.dupe(u8, exchange.bytes[0..exchange.received]) catch {
            self.gpa.free(lines);
            return;
        };
        const spare: *Spare = @ptrCast(@alignCast(exchange.own_bytes.ptr));
        const given: Spare = .{
            .next = null,
            .bytes = exchange.own_bytes,
            .field_lines = exchange.head.field_lines,
        };
        exchange.bytes = bytes;
        exchange.own_bytes = &.{};
        exchange.head.field_lines = lines;
        self.mutex.lock();
        defer self.mutex.unlock();
        spare.* = given;
        spare.next = self.spare;
        self.spare = spare;
    }

    /// A buffer again for an exchange that has none.
    fn expand(self: *Pool, exchange: *Exchange) error{OutOfMemory}!void {
        self.mutex.lock();
        const spare = self.spare;
        if (spare) |found| self.spare = found.next;
        self.mutex.unlock();
        var lines: []FieldLine = undefined;
        if (spare) |found| {
            lines = found.field_lines;
            exchange.own_bytes = found.bytes;
        } else {
            lines = try self.gpa.alloc(FieldLine, self.field_lines_max);
            errdefer self.gpa.free(lines);
            exchange.own_bytes = try pages.alloc(u8, buffer_bytes);
        }
        exchange.bytes = exchange.own_bytes;
        exchange.head = .init(lines);
    }

    pub fn acquire(self: *Pool) error{OutOfMemory}!*Exchange {
        self.mutex.lock();
        if (self.free) |exchange| {
            self.free = exchange.next;
            self.in_use += 1;
            self.mutex.unlock();
            if (exchange.own_bytes.len == 0) self.expand(exchange) catch |err| {
                self.put_back(exchange);
                return err;
            };
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
        exchange.* = .{
            .head = .init(&.{}),
            .bytes = &.{},
            .own_bytes = &.{},
            .buffer_memory = self.buffer_memory,
            .output = .{ .buffer_memory = self.buffer_memory },
            .id_text = self.id_prefix ++ @as([request_ids.prefix_bytes]u8, @splat('0')),
        };
        try self.expand(exchange);
        return exchange;
    }

    /// How many connections have one. Any thread.
    pub fn count_in_use(self: *Pool) u32 {
        self.mutex.lock();
        defer self.mutex.unlock();
        return self.in_use;
    }

    /// Takes an exchange back; nothing may point into it any more.
    pub fn release(self: *Pool, exchange: *Exchange) void {
        exchange.body.deinit(self.gpa);
        exchange.body = .{};
        if (!exchange.output.is_empty()) exchange.output.deinit(self.gpa);
        // Not null when the server was stopped in the middle; the process ends with it then.
        exchange.continuation = null;
        if (exchange.suspension) |suspension| {
            _ = suspension.end();
            suspension.release(self.gpa);
            exchange.suspension = null;
        }
        exchange.release_bytes(self.gpa);
        exchange.received = 0;
        exchange.request_end = 0;
        if (exchange.own_bytes.len == 0) {
            self.gpa.free(exchange.head.field_lines);
            exchange.head.field_lines = &.{};
        }
        exchange.claims = null;
        exchange.head.reset();
        self.put_back(exchange);
    }

    fn put_back(self: *Pool, exchange: *Exchange) void {
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

test "an exchange takes over what a trusted proxy says" {
    var pool: Pool = .{ .gpa = testing.allocator, .field_lines_max = 8 };
    defer pool.deinit();
    const exchange = try pool.acquire();
    defer pool.release(exchange);
    const cases = [_]struct { []const u8, []const u8, u64 }{
        .{ "X-Request-Id: abc-1\r\nX-Request-Start: t=1000.5\r\n", "abc-1", 500_000_000 },
        .{ "X-Queue-Start: 1000750\r\nX-Request-Id: a\"b\r\n", "0" ** 31 ++ "7", 0 },
        .{ "X-Queue-Start: 1000.9\r\nX-Request-Start: 1000.2\r\n", "0" ** 31 ++ "7", 800_000_000 },
        .{ "", "0" ** 31 ++ "7", 0 },
    };
    for (cases) |case| {
        var storage: [200]u8 = undefined;
        const text = "GET / HTTP/1.1\r\nHost: a\r\n{s}\r\n";
        const request = try std.fmt.bufPrint(&storage, text, .{case[0]});
        @memcpy(exchange.bytes[0..request.len], request);
        exchange.received = @intCast(request.len);
        exchange.head.reset();
        exchange.record.begin(1, 7);
        try testing.expect(try exchange.head.parse(exchange.bytes[0..request.len], .{
            .request_line_bytes_max = 100,
            .head_bytes_max = 200,
            .field_lines_max = 8,
        }));
        exchange.believe(1_001_000);
        try testing.expectEqualStrings(case[1], exchange.request_id());
        var copy: [request_ids.given_bytes_max]u8 = undefined;
        const length = exchange.copy_request_id(&copy);
        try testing.expectEqualStrings(case[1], copy[0..length]);
        try testing.expectEqual(case[2], exchange.record.waited_before_ns);
    }
}

test "a compacted exchange keeps its head and gets a buffer again" {
    const gpa = testing.allocator;
    var pool: Pool = .{ .gpa = gpa, .field_lines_max = 8 };
    defer pool.deinit();
    const exchange = try pool.acquire();
    const text = "GET /a HTTP/1.1\r\nHost: b\r\n\r\n";
    @memcpy(exchange.bytes[0..text.len], text);
    exchange.received = text.len;
    const limits: request_head.Limits = .{
        .request_line_bytes_max = 100,
        .head_bytes_max = 1000,
        .field_lines_max = 8,
    };
    try testing.expect(try exchange.head.parse(exchange.bytes[0..text.len], limits));
    exchange.request_end = text.len;
    const buffer = exchange.own_bytes.ptr;
    pool.compact(exchange);
    pool.compact(exchange);
    try testing.expectEqual(text.len, exchange.bytes.len);
    try testing.expectEqualStrings("/a", exchange.head.path.of(exchange.bytes));
    const value = exchange.head.lines()[0].value;
    try testing.expectEqualStrings("b", value.of(exchange.bytes));

    // The buffer serves another request meanwhile.
    const other = try pool.acquire();
    try testing.expectEqual(buffer, other.own_bytes.ptr);
    pool.release(exchange);
    const again = try pool.acquire();
    defer pool.release(again);
    defer pool.release(other);
    try testing.expectEqual(exchange, again);
    try testing.expectEqual(buffer_bytes, again.bytes.len);
}

test "output grows, moves up and frees itself" {
    var output: Output = .{};
    const gpa = testing.allocator;
    try output.append(gpa, "hello");
    output.discard(gpa, 2);
    try output.append(gpa, " world");
    try testing.expectEqualStrings("llo world", output.buffer[output.start..output.end]);
    output.discard(gpa, 9);
    try testing.expect(output.is_empty());
    try testing.expectEqual(0, output.buffer.len);
}

test "output sends what was kept, then what is pinned, then its tail" {
    var output: Output = .{};
    const gpa = testing.allocator;
    try output.append(gpa, "4\r\n");
    output.pinned = "data";
    output.tail = "\r\n";
    var sent: [9]u8 = undefined;
    for (&sent) |*byte| {
        var storage: [Output.pieces_max]sys.Iovec = undefined;
        byte.* = output.vector(&storage)[0].base[0];
        try testing.expect(!output.is_empty());
        output.discard(gpa, 1);
    }
    try testing.expectEqualStrings("4\r\ndata\r\n", &sent);
    try testing.expect(output.is_empty());
}

test "output sends its bytes, then its file, then the parts that follow" {
    const gpa = testing.allocator;
    const ranges = [_]@import("ranges.zig").Range{
        .{ .start = 1, .length = 3 },
        .{ .start = 6, .length = 2 },
    };
    const boundary: [32]u8 = @splat('b');
    inline for (.{ false, true }) |sends_all| {
        const pair = try sys.socket_pair();
        defer for (pair) |fd| sys.close(fd);
        const file = try sys.open_unlinked("/tmp");
        try sys.write_all_at(file, "0123456789", 0);
        var output: Output = .{};
        defer output.deinit(gpa);
        try output.append(gpa, "head ");
        const multipart = try Multipart.create(gpa, &ranges, 10, "a/b", &boundary);
        const length = multipart.content_length();
        output.begin_parts(file, multipart);
        var sent: usize = 0;
        while (!output.is_empty()) {
            sent += try output.send(gpa, pair[0], 2);
            if (!sends_all and sent > 40) break;
        }
        if (!sends_all) continue;
        try testing.expectEqual(5 + length, sent);
        try testing.expectEqual(sys.no_fd, output.file.fd);
        try testing.expectEqual(null, output.multipart);
        var buffer: [1024]u8 = undefined;
        const text = buffer[0..try sys.recv(pair[1], &buffer)];
        try testing.expectEqual(sent, text.len);
        try testing.expect(std.mem.startsWith(u8, text, "head \r\n--b"));
        try testing.expect(std.mem.indexOf(u8, text, "bytes 1-3/10\r\n\r\n123\r\n--b") != null);
        try testing.expect(std.mem.indexOf(u8, text, "bytes 6-7/10\r\n\r\n67\r\n--b") != null);
        try testing.expect(std.mem.endsWith(u8, text, "b--\r\n"));
    }
}

//! The body without a socket's timing: every split of the bytes, against each way to keep them; and
//! a streamed body on a socket pair.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const body_module = @import("body.zig");
const exchange_module = @import("exchange.zig");
const request_head = @import("request_head.zig");
const interlude = @import("server_fixture.zig").free_interlude;
const BufferMemory = @import("buffer_memory.zig").BufferMemory;
const Exchange = exchange_module.Exchange;

const gpa = testing.allocator;

const head_limits: request_head.Limits = .{
    .request_line_bytes_max = 1000,
    .head_bytes_max = 10_000,
    .field_lines_max = 16,
};

fn limits_with(bytes_max: u64, memory_bytes_max: usize) body_module.Limits {
    return .{
        .bytes_max = bytes_max,
        .memory_bytes_max = memory_bytes_max,
        .timeout_ms = 50,
        .temporary_directory = "/tmp",
    };
}

/// Gives an exchange the bytes of `message` as a poller would that received them in pieces: `first`
/// bytes with the head, then at most `step` at once. True when the body is complete.
fn gather(
    exchange: *Exchange,
    message: []const u8,
    first: usize,
    step: usize,
    limits: *const body_module.Limits,
) !bool {
    var scratch: [700]u8 = undefined;
    @memcpy(exchange.bytes[0..first], message[0..first]);
    exchange.received = @intCast(first);
    if (!try exchange.head.parse(exchange.bytes[0..first], head_limits)) return false;
    const body = &exchange.body;
    try body.begin(exchange, gpa, limits);
    if (body.complete) return true;
    try body.take_buffered(exchange, gpa, &scratch, limits);
    var rest = message[first..];
    while (rest.len > 0 and !body.complete) {
        const room = try body.receive_into(exchange, gpa, &scratch);
        try testing.expect(room.len > 0);
        const count = @min(rest.len, step, room.len);
        @memcpy(room[0..count], rest[0..count]);
        try body.take_received(exchange, gpa, &scratch, count, limits);
        rest = rest[count..];
    }
    return body.complete;
}

fn read_all(exchange: *Exchange, step: usize, limits: *const body_module.Limits) ![]u8 {
    var all: std.ArrayList(u8) = .empty;
    errdefer all.deinit(gpa);
    var buffer: [5000]u8 = undefined;
    while (true) {
        const left = exchange.body.readable();
        const part = buffer[0..@min(step, buffer.len)];
        const count = try exchange.body.read(sys.no_fd, part, limits, interlude);
        try testing.expectEqual(@min(left, part.len), count);
        if (count == 0) return all.toOwnedSlice(gpa);
        try all.appendSlice(gpa, part[0..count]);
    }
}

const Case = struct {
    size: usize,
    chunk_bytes: usize,
    memory_bytes_max: usize,
    /// Of all bodies together.
    buffer_memory_max: u64 = std.math.maxInt(u64),
};

fn make_message(case: Case, content: []u8) ![]u8 {
    for (content, 0..) |*byte, at| byte.* = @truncate(at *% 31 ^ at >> 8);
    var text: std.ArrayList(u8) = .empty;
    errdefer text.deinit(gpa);
    try text.appendSlice(gpa, "POST / HTTP/1.1\r\nHost: a\r\n");
    if (case.chunk_bytes == 0) {
        try text.print(gpa, "Content-Length: {d}\r\n\r\n{s}", .{ content.len, content });
    } else {
        try text.appendSlice(gpa, "Transfer-Encoding: chunked\r\n\r\n");
        var chunks = std.mem.window(u8, content, case.chunk_bytes, case.chunk_bytes);
        while (chunks.next()) |chunk| {
            if (chunk.len > 0) try text.print(gpa, "{x};e=1\r\n{s}\r\n", .{ chunk.len, chunk });
        }
        try text.appendSlice(gpa, "0\r\nT: u\r\n\r\n");
    }
    return text.toOwnedSlice(gpa);
}

fn pool_with(buffer_memory: *BufferMemory) exchange_module.Pool {
    return .{ .gpa = gpa, .field_lines_max = 16, .buffer_memory = buffer_memory };
}

fn expect_gathered(case: Case, split: usize, step: usize) !void {
    const content = try gpa.alloc(u8, case.size);
    defer gpa.free(content);
    const message = try make_message(case, content);
    defer gpa.free(message);
    const next = "GET /next HTTP/1.1\r\n";
    const both = try std.mem.concat(gpa, u8, &.{ message, next });
    defer gpa.free(both);
    var buffer_memory: BufferMemory = .init(case.buffer_memory_max);
    var pool = pool_with(&buffer_memory);
    defer pool.deinit();
    const exchange = try pool.acquire();
    defer pool.release(exchange);
    const limits = limits_with(case.size, case.memory_bytes_max);
    const head_bytes = std.mem.indexOf(u8, message, "\r\n\r\n").? + 4;
    const first = @min(head_bytes + split, exchange.bytes.len, both.len);
    try testing.expect(try gather(exchange, both, first, step, &limits));
    const seen = try read_all(exchange, step, &limits);
    defer gpa.free(seen);
    try testing.expectEqualSlices(u8, content, seen);
    try testing.expect(exchange.body.memory_used <= @max(limits.memory_bytes_max, 16 * 1024));
    // Beside a share, one piece, and what every chunked body has.
    const held_max = @max(case.buffer_memory_max, BufferMemory.each_bytes_min) +| step +| 24 * 1024;
    try testing.expect(buffer_memory.bytes.load(.monotonic) <= held_max);
    try testing.expect(exchange.body.memory_used <= held_max);
    const taken = exchange.body.file_length + exchange.body.memory_used;
    try testing.expectEqual(case.size, taken);
    exchange.begin_next(gpa);
    try testing.expectEqual(0, buffer_memory.bytes.load(.monotonic));
    const kept = exchange.bytes[0..exchange.received];
    try testing.expect(std.mem.startsWith(u8, next, kept));
    try testing.expectEqual(sys.no_fd, exchange.body.file);
}

test "body: gathered in every way from pieces of every size" {
    const sizes = [_]usize{ 0, 1, 2, 300, 16_000, 16_384, 20_000, 40_000 };
    for (sizes) |size| {
        for ([_]usize{ 0, 1, 300, 5000, 50_000 }) |chunk_bytes| {
            if (chunk_bytes == 1 and size > 300) continue;
            for ([_]usize{ 0, 100, 17_000, 1 << 20 }) |memory_bytes_max| {
                const case: Case = .{
                    .size = size,
                    .chunk_bytes = chunk_bytes,
                    .memory_bytes_max = memory_bytes_max,
                };
                for ([_]usize{ 0, 1, 150, 20_000 }) |split| {
                    try expect_gathered(case, split, if (size <= 300) 1 else 977);
                    try expect_gathered(case, split, 100_000);
                }
            }
        }
    }
}

test "body: with little memory for all of them a share of each is in memory" {
    for ([_]usize{ 20_000, 65_536, 65_537, 200_000 }) |size| {
        for ([_]usize{ 0, 300, 50_000 }) |chunk_bytes| {
            for ([_]u64{ 1, 9_000, 70_000, 1 << 20 }) |buffer_memory_max| {
                const case: Case = .{
                    .size = size,
                    .chunk_bytes = chunk_bytes,
                    .memory_bytes_max = 1 << 20,
                    .buffer_memory_max = buffer_memory_max,
                };
                for ([_]usize{ 977, 100_000 }) |step| try expect_gathered(case, 150, step);
            }
        }
    }
}

test "body: one that needs memory is refused when twice as much is held" {
    for ([_][]const u8{ "Content-Length: 100000", "Transfer-Encoding: chunked" }) |framing| {
        var buffer_memory: BufferMemory = .init(1000);
        var pool = pool_with(&buffer_memory);
        defer pool.deinit();
        const exchange = try pool.acquire();
        defer pool.release(exchange);
        const head = "POST / HTTP/1.1\r\nHost: a\r\n{s}\r\n\r\n";
        const text = try std.fmt.bufPrint(exchange.bytes, head, .{framing});
        exchange.received = @intCast(text.len);
        try testing.expect(try exchange.head.parse(text, head_limits));
        const limits = limits_with(1 << 20, 1 << 20);
        buffer_memory.add(2000);
        try testing.expectError(error.OutOfMemory, exchange.body.begin(exchange, gpa, &limits));
        buffer_memory.remove(1);
        try exchange.body.begin(exchange, gpa, &limits);
        buffer_memory.remove(1999);
    }
}

test "body: what is cut off anywhere is not complete" {
    var content: [30]u8 = undefined;
    const limits = limits_with(100, 10);
    for ([_]usize{ 0, 7 }) |chunk_bytes| {
        const message = try make_message(.{
            .size = content.len,
            .chunk_bytes = chunk_bytes,
            .memory_bytes_max = 10,
        }, &content);
        defer gpa.free(message);
        const head_bytes = std.mem.indexOf(u8, message, "\r\n\r\n").? + 4;
        for (head_bytes..message.len) |end| {
            var pool: exchange_module.Pool = .{ .gpa = gpa, .field_lines_max = 16 };
            defer pool.deinit();
            const exchange = try pool.acquire();
            defer pool.release(exchange);
            const is_complete = try gather(exchange, message[0..end], head_bytes, 3, &limits);
            try testing.expect(!is_complete);
        }
    }
}

test "body: one byte more than allowed is refused, by its length or when it is announced" {
    for ([_]usize{ 0, 1, 10, 1000 }) |chunk_bytes| {
        for ([_]usize{ 100, 101 }) |size| {
            var content: [101]u8 = undefined;
            const message = try make_message(.{
                .size = size,
                .chunk_bytes = chunk_bytes,
                .memory_bytes_max = 10,
            }, content[0..size]);
            defer gpa.free(message);
            const head_bytes = std.mem.indexOf(u8, message, "\r\n\r\n").? + 4;
            var pool: exchange_module.Pool = .{ .gpa = gpa, .field_lines_max = 16 };
            defer pool.deinit();
            const exchange = try pool.acquire();
            defer pool.release(exchange);
            const limits = limits_with(100, 10);
            const result = gather(exchange, message, head_bytes, 5, &limits);
            if (size == 100) {
                try testing.expect(try result);
            } else {
                try testing.expectError(error.TooLarge, result);
            }
        }
    }
}

test "body: a folder that is not there" {
    var content: [20_000]u8 = undefined;
    for ([_]usize{ 0, 3000 }) |chunk_bytes| {
        const message = try make_message(.{
            .size = content.len,
            .chunk_bytes = chunk_bytes,
            .memory_bytes_max = 10,
        }, &content);
        defer gpa.free(message);
        var pool: exchange_module.Pool = .{ .gpa = gpa, .field_lines_max = 16 };
        defer pool.deinit();
        const exchange = try pool.acquire();
        defer pool.release(exchange);
        var limits = limits_with(1 << 20, 10);
        limits.temporary_directory = "/tmp/serve-zig/is/not/there";
        try testing.expectError(error.Unexpected, gather(exchange, message, 100, 500, &limits));
    }
}

const Streamed = struct {
    pool: exchange_module.Pool = .{ .gpa = gpa, .field_lines_max = 16 },
    exchange: *Exchange = undefined,
    server: sys.Fd = sys.no_fd,
    client: sys.Fd = sys.no_fd,
    limits: body_module.Limits = limits_with(1000, 10),

    fn begin(self: *Streamed, framing: []const u8) !void {
        const pair = try sys.socket_pair();
        self.server, self.client = pair;
        self.exchange = try self.pool.acquire();
        const text = try std.fmt.bufPrint(self.exchange.bytes, "POST / HTTP/1.1\r\nHost: a\r\n" ++
            "Expect: 100-continue\r\n{s}\r\n\r\n", .{framing});
        self.exchange.received = @intCast(text.len);
        try testing.expect(try self.exchange.head.parse(text, head_limits));
        try self.exchange.body.begin(self.exchange, gpa, &self.limits);
        try testing.expectEqual(.streamed, self.exchange.body.mode);
    }

    fn deinit(self: *Streamed) void {
        sys.close(self.server);
        if (self.client != sys.no_fd) sys.close(self.client);
        self.pool.release(self.exchange);
        self.pool.deinit();
    }

    fn read(self: *Streamed, destination: []u8) body_module.ReadError!usize {
        const body = &self.exchange.body;
        return body.read(self.server, destination, &self.limits, interlude);
    }

    fn expect_interim(self: *Streamed, expected: []const u8) !void {
        var buffer: [100]u8 = undefined;
        const count = sys.recv(self.client, &buffer) catch 0;
        try testing.expectEqualStrings(expected, buffer[0..count]);
    }
};

test "body: a streamed one asks once, ends where it ends and keeps what follows" {
    for ([_]usize{ 1, 3, 100 }) |step| {
        var streamed: Streamed = .{};
        try streamed.begin("Content-Length: 7");
        defer streamed.deinit();
        var buffer: [100]u8 = undefined;
        try testing.expectEqual(0, try streamed.read(buffer[0..0]));
        try streamed.expect_interim("");
        try testing.expectError(error.TimedOut, streamed.read(&buffer));
        try streamed.expect_interim("HTTP/1.1 100 Continue\r\n\r\n");
        _ = try sys.send(streamed.client, "contentnext");
        var seen: std.ArrayList(u8) = .empty;
        defer seen.deinit(gpa);
        while (true) {
            const count = try streamed.read(buffer[0..step]);
            if (count == 0) break;
            try seen.appendSlice(gpa, buffer[0..count]);
        }
        try testing.expectEqualStrings("content", seen.items);
        try testing.expect(streamed.exchange.body.complete);
        try testing.expectEqual(0, try streamed.read(&buffer));
        try streamed.expect_interim("");
        try testing.expectEqual(streamed.exchange.request_end, streamed.exchange.received);
        const left = try sys.recv(streamed.server, &buffer);
        try testing.expectEqualStrings("next", buffer[0..left]);
    }
}

test "body: a streamed one that is cut off" {
    var streamed: Streamed = .{};
    try streamed.begin("Content-Length: 5");
    defer streamed.deinit();
    _ = try sys.send(streamed.client, "ab");
    sys.close(streamed.client);
    streamed.client = sys.no_fd;
    // The client is gone, so that asking may fail; as if it had been asked already.
    streamed.exchange.body.continue_due = false;
    var buffer: [100]u8 = undefined;
    try testing.expectEqual(2, try streamed.read(&buffer));
    try testing.expectError(error.ClientGone, streamed.read(&buffer));
    try testing.expect(!streamed.exchange.body.complete);
}

test "body: a chunked one is gathered though its client waits for 100 (Continue)" {
    var pool: exchange_module.Pool = .{ .gpa = gpa, .field_lines_max = 16 };
    defer pool.deinit();
    const exchange = try pool.acquire();
    defer pool.release(exchange);
    const text = try std.fmt.bufPrint(exchange.bytes, "POST / HTTP/1.1\r\nHost: a\r\n" ++
        "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n", .{});
    exchange.received = @intCast(text.len);
    try testing.expect(try exchange.head.parse(text, head_limits));
    const limits = limits_with(1000, 10);
    try exchange.body.begin(exchange, gpa, &limits);
    try testing.expectEqual(.gathered, exchange.body.mode);
    try testing.expect(exchange.body.continue_due);
}

test "body: a drain that begins while a streamed one is waited for ends the wait" {
    var by_ms: std.atomic.Value(u64) = .init(std.math.maxInt(u64));
    var streamed: Streamed = .{};
    streamed.limits.timeout_ms = 60_000;
    streamed.limits.receive_by_ms = &by_ms;
    try streamed.begin("Content-Length: 100");
    defer streamed.deinit();
    var buffer: [100]u8 = undefined;
    _ = try sys.send(streamed.client, "begun");
    try testing.expectEqual(5, try streamed.read(&buffer));

    const began_ms = sys.monotonic_ms();
    const drain = try std.Thread.spawn(.{}, begin_drain, .{&by_ms});
    defer drain.join();
    try testing.expectError(error.TimedOut, streamed.read(&buffer));
    try testing.expect(sys.monotonic_ms() - began_ms < 5_000);

    // What comes too late is not read either, however much there is.
    _ = try sys.send(streamed.client, "too late");
    try testing.expectError(error.TimedOut, streamed.read(&buffer));
}

fn begin_drain(by_ms: *std.atomic.Value(u64)) void {
    sys.sleep_ms(20);
    by_ms.store(sys.monotonic_ms() + 20, .release);
}

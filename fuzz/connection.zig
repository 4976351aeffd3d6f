//! Fuzz target: all that one client sends, heads and bodies one behind the other through the
//! buffers of a connection. However the bytes are split, the same requests; each begins and ends
//! where the grammar says, read a second time, so that none hides in another.
//!
//! Settings: bit 0 a small body limit, bit 1 little memory for bodies (the rest goes to a file),
//! bit 2 a small buffer that has to grow.
//! Data: owns its exchange for the call. Thread: one. GIL: not needed.

const std = @import("std");
const core = @import("core");
const given = @import("input.zig");
const reading = @import("reading.zig");
const reference = @import("reference.zig");

const expect = given.expect;
const requests_max = 512;
const field_lines_max = 100;

const Record = struct {
    start: usize,
    end: usize,
    head_bytes: usize,
    body_len: u64,
    /// Of the head's parts and of the body.
    digest: u64,
    chunked: bool,
};

const Records = struct {
    items: [requests_max]Record = undefined,
    count: usize = 0,
    end: reading.End = .idle,

    pub fn visit(self: *Records, request: reading.Request) !void {
        const exchange = request.exchange;
        expect(request.start < request.end, "a request has bytes");
        if (self.count == requests_max) return;
        const head = &exchange.head;
        var digest: std.hash.Wyhash = .init(0);
        for (head.lines()) |line| {
            digest.update(line.name.of(exchange.bytes));
            digest.update(line.value.of(exchange.bytes));
        }
        digest.update(head.method.of(exchange.bytes));
        digest.update(head.target.of(exchange.bytes));
        const body_len = try read_whole(exchange, &digest);
        self.items[self.count] = .{
            .start = request.start,
            .end = request.end,
            .head_bytes = head.head_bytes,
            .body_len = body_len,
            .digest = digest.final(),
            .chunked = head.framing == .chunked,
        };
        self.count += 1;
    }
};

fn read_whole(exchange: *core.exchange.Exchange, digest: *std.hash.Wyhash) !u64 {
    const body = &exchange.body;
    var total: u64 = 0;
    if (body.mode == .none) return 0;
    expect(body.complete, "a gathered body is complete");
    const announced = body.readable();
    var piece: [777]u8 = undefined;
    while (true) {
        // Gathered, so that neither descriptor nor limits are looked at.
        const count = try body.read(core.sys.no_fd, &piece, undefined, undefined);
        if (count == 0) break;
        digest.update(piece[0..count]);
        total += count;
    }
    expect(total == announced, "a body is as long as it says");
    return total;
}

var buffer_memory: core.buffer_memory.BufferMemory = .init(std.math.maxInt(u64));
var pool: ?core.exchange.Pool = null;
var records: [3]Records = .{ .{}, .{}, .{} };
var scratch: [1024]u8 = undefined;
var data: [given.bytes_max]u8 = undefined;
var trailers: [given.bytes_max]u8 = undefined;

pub fn run(gpa: std.mem.Allocator, input: []const u8) void {
    const message = given.Input.of(input) orelse return;
    var limits = reading.default_limits;
    if (message.settings & 1 != 0) limits.body.bytes_max = message.seed;
    if (message.settings & 2 != 0) limits.body.memory_bytes_max = message.seed >> 2;
    const is_short = message.settings & 8 != 0;
    buffer_memory.bytes_max = if (is_short) 1 + @as(u64, message.seed) else std.math.maxInt(u64);
    var whole: Whole = .{ .end = message.bytes.len };
    const all: reading.Client = .{
        .bytes = message.bytes,
        .next_piece = Whole.next,
        .context = &whole,
    };
    read_all(gpa, &records[0], all, &limits, core.exchange.buffer_bytes);
    const small = message.settings & 4 != 0;
    const buffer_bytes: usize = if (small) 1 + @as(usize, message.seed >> 2) else 4096;
    var pieces = message.pieces();
    const split: reading.Client = .{
        .bytes = message.bytes,
        .next_piece = next_of,
        .context = &pieces,
    };
    read_all(gpa, &records[1], split, &limits, buffer_bytes);
    expect_same(&records[0], &records[1]);
    var heads: HeadByHead = .{ .bytes = message.bytes };
    const waiting: reading.Client = .{
        .bytes = message.bytes,
        .next_piece = HeadByHead.next,
        .context = &heads,
    };
    read_all(gpa, &records[2], waiting, &limits, buffer_bytes);
    expect_same(&records[0], &records[2]);
    expect_adjacent(&records[0], message.bytes);
    if (message.settings & 1 == 0) expect_grammar(&records[0], message.bytes);
}

const Whole = struct {
    end: usize,
    given: bool = false,

    fn next(context: *anyopaque) ?usize {
        const self: *Whole = @ptrCast(@alignCast(context));
        if (self.given) return null;
        self.given = true;
        return self.end;
    }
};

/// Pieces that end where an empty line does, as of a client that waits before it sends a body.
const HeadByHead = struct {
    bytes: []const u8,
    at: usize = 0,
    ended: bool = false,

    fn next(context: *anyopaque) ?usize {
        const self: *HeadByHead = @ptrCast(@alignCast(context));
        if (self.ended) return null;
        if (std.mem.indexOfPos(u8, self.bytes, self.at, "\r\n\r\n")) |found| {
            self.at = found + 4;
            return self.at;
        }
        self.ended = true;
        return self.bytes.len;
    }
};

fn next_of(context: *anyopaque) ?usize {
    const pieces: *given.Pieces = @ptrCast(@alignCast(context));
    return pieces.next();
}

fn read_all(
    gpa: std.mem.Allocator,
    to: *Records,
    sender: reading.Client,
    limits: *const reading.Limits,
    buffer_bytes: usize,
) void {
    if (pool == null) pool = .{
        .gpa = gpa,
        .field_lines_max = field_lines_max,
        .buffer_memory = &buffer_memory,
    };
    const exchange = pool.?.acquire() catch @panic("out of memory");
    defer {
        pool.?.release(exchange);
        expect(buffer_memory.total() == 0, "all memory that was counted is given back");
    }
    // The pool gives it back its own length.
    exchange.bytes = exchange.own_bytes[0..buffer_bytes];
    to.count = 0;
    var client = sender;
    var reader: reading.Reader(*Records) = .{
        .gpa = gpa,
        .limits = limits,
        .exchange = exchange,
        .client = &client,
        .visitor = to,
        .scratch = &scratch,
    };
    to.end = reader.run() catch @panic("out of memory");
}

/// Frees what is kept from call to call.
pub fn deinit() void {
    if (pool) |*made| made.deinit();
    pool = null;
}

fn expect_same(a: *const Records, b: *const Records) void {
    expect(a.count == b.count, "the same requests however the bytes are split");
    for (a.items[0..a.count], b.items[0..b.count]) |one, other| {
        expect(std.meta.eql(one, other), "each request the same");
    }
    expect(std.meta.activeTag(a.end) == b.end, "the same end");
    if (a.end != .refused) return;
    // A body may be too large and wrong, and what is seen first depends on what has come.
    if (a.end.refused.status == 413 or b.end.refused.status == 413) return;
    given.expect_equal(a.end.refused.reason, b.end.refused.reason, "the same reason");
}

/// The requests lie one behind the other and cover all but the end.
fn expect_adjacent(all: *const Records, bytes: []const u8) void {
    var at: usize = 0;
    for (all.items[0..all.count]) |record| {
        expect(record.start == at, "a request begins where the last one ended");
        expect(record.end <= bytes.len, "a request is part of what was sent");
        const body_bytes = record.end - record.start - record.head_bytes;
        const exact = record.chunked or body_bytes == record.body_len;
        expect(exact and body_bytes >= record.body_len, "head and body make the request");
        at = record.end;
    }
}

fn expect_grammar(all: *const Records, bytes: []const u8) void {
    for (all.items[0..all.count]) |record| {
        const text = bytes[record.start..];
        const head = reference.read_head(text, field_lines_max);
        expect(head == .valid and head.valid == record.head_bytes, "the head ends there");
        const body = text[record.head_bytes .. record.end - record.start];
        if (!record.chunked) continue;
        var decoded: reference.Decoded = .{ .data = &data, .trailers = &trailers };
        const coded = reference.read_chunked(body, &decoded);
        expect(coded == .valid and coded.valid == body.len, "the chunked body ends there");
        expect(decoded.data_len == record.body_len, "with so much data");
    }
}

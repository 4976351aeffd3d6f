//! Reads all that one client sends as the poller does, request after request through the core's own
//! Exchange and Body, but from memory and without an application: it stops where the server would
//! answer for the last time.
//!
//! A body that the client holds back until it is asked (RFC 9110 10.1.1) is read as the application
//! would read it, from a socket. Data: owns the exchange while it runs. Thread: one. GIL: none.

const std = @import("std");
const core = @import("core");
const request_head = core.request_head;
const Body = core.body.Body;
const Exchange = core.exchange.Exchange;

pub const Limits = struct {
    head: request_head.Limits,
    body: core.body.Limits,
};

pub const default_limits: Limits = .{
    .head = .{
        .request_line_bytes_max = 8 * 1024,
        .head_bytes_max = 64 * 1024,
        .field_lines_max = 100,
    },
    .body = .{
        .bytes_max = 1024 * 1024 * 1024,
        .memory_bytes_max = 1024 * 1024,
        .timeout_ms = 1000,
        .temporary_directory = "/tmp",
    },
};

pub const Refusal = struct { status: u16, reason: []const u8 };

/// Why no further request is read.
pub const End = union(enum) {
    /// All was read, and at the most an empty line is left.
    idle,
    in_head,
    in_body,
    /// The last request asked for the connection's end; what follows it is not looked at.
    closed,
    refused: Refusal,
};

/// One whole request. The exchange's head and body hold it.
pub const Request = struct {
    exchange: *Exchange,
    /// In bytes from the first one that the client sent.
    start: usize,
    end: usize,
};

/// What the client sends, as pieces that arrive one by one.
pub const Client = struct {
    bytes: []const u8,
    /// Ends of the pieces, growing; null when the last one was given.
    next_piece: *const fn (context: *anyopaque) ?usize,
    context: *anyopaque,
    at: usize = 0,
    piece_end: usize = 0,

    /// Like recv: as much as is there. 0 when no more will come.
    fn receive(self: *Client, buffer: []u8) usize {
        while (self.at >= self.piece_end) {
            self.piece_end = self.next_piece(self.context) orelse return 0;
        }
        const count = @min(buffer.len, self.piece_end - self.at);
        @memcpy(buffer[0..count], self.bytes[self.at..][0..count]);
        self.at += count;
        return count;
    }
};

/// Where in the stream the reading stands, and what it is told by.
pub fn Reader(comptime Visitor: type) type {
    return struct {
        const Self = @This();

        gpa: std.mem.Allocator,
        limits: *const Limits,
        exchange: *Exchange,
        client: *Client,
        visitor: Visitor,
        /// Where the bytes of bodies go that are on their way to a file.
        scratch: []u8,
        start: usize = 0,

        /// Reads until the end and returns it. The visitor's `visit` gets each whole request.
        pub fn run(self: *Self) !End {
            while (true) {
                if (try self.read_head()) |end| return end;
                const end = self.read_body() catch |err| return refused_body(err);
                if (end) |early| return early;
                // What is buffered behind the request is the next one's.
                const next = self.client.at - (self.exchange.received - self.exchange.request_end);
                try self.visitor.visit(.{
                    .exchange = self.exchange,
                    .start = self.start,
                    .end = next,
                });
                if (!self.exchange.head.persistent) return .closed;
                self.exchange.begin_next(self.gpa);
                self.start = next;
            }
        }

        fn read_head(self: *Self) !?End {
            const exchange = self.exchange;
            while (true) {
                const bytes = exchange.bytes[0..exchange.received];
                const head = &exchange.head;
                const complete = bytes.len > 0 and
                    (head.parse(bytes, self.limits.head) catch |err| return refused_head(err));
                if (complete) {
                    if (head.target_form == .authority_form) {
                        return .{ .refused = .{ .status = 501, .reason = "connect" } };
                    }
                    if (!exchange.is_misdirected()) return null;
                    return .{ .refused = .{ .status = 421, .reason = "misdirected" } };
                }
                if (exchange.received == exchange.bytes.len) {
                    try exchange.ensure_space(self.gpa, core.exchange.buffer_bytes);
                }
                const count = self.client.receive(exchange.bytes[exchange.received..]);
                if (count == 0) return if (exchange.is_blank()) .idle else .in_head;
                exchange.received += @intCast(count);
            }
        }

        fn read_body(self: *Self) core.body.Error!?End {
            const exchange = self.exchange;
            const body = &exchange.body;
            const limits = &self.limits.body;
            try body.begin(exchange, self.gpa, limits);
            if (body.complete) return null;
            if (body.mode == .streamed) return self.read_stream();
            try body.take_buffered(exchange, self.gpa, self.scratch, limits);
            while (!body.complete) {
                const room = try body.receive_into(exchange, self.gpa, self.scratch);
                const count = self.client.receive(room);
                if (count == 0) return .in_body;
                try body.take_received(exchange, self.gpa, self.scratch, count, limits);
            }
            return null;
        }

        /// The rest of what the client sends goes through a socket, and what the body leaves there
        /// comes back.
        fn read_stream(self: *Self) core.body.ReadError!?End {
            var pair: [2]core.sys.Fd = undefined;
            const kind = std.c.SOCK.STREAM;
            if (std.c.socketpair(std.c.AF.UNIX, kind, 0, &pair) != 0) @panic("no socket pair");
            defer for (pair) |fd| core.sys.close(fd);
            const rest = self.client.bytes[self.client.at..];
            const sent = core.sys.send(pair[1], rest) catch @panic("a full socket pair");
            if (sent != rest.len) @panic("a socket pair that is too small");
            core.sys.shutdown_send(pair[1]);
            self.client.at = self.client.bytes.len;
            self.client.piece_end = self.client.at;
            const body = &self.exchange.body;
            // Gathered after all, for the visitor: a streamed body is nowhere as a whole.
            var gathered: std.ArrayList(u8) = .empty;
            errdefer gathered.deinit(self.gpa);
            while (!body.complete) {
                const room = try gathered.addManyAsSlice(self.gpa, 100);
                const limits = &self.limits.body;
                const count = body.read(pair[0], room, limits, interlude) catch |err|
                    switch (err) {
                        error.ClientGone => {
                            gathered.deinit(self.gpa);
                            return .in_body;
                        },
                        else => return err,
                    };
                gathered.shrinkRetainingCapacity(gathered.items.len - room.len + count);
            }
            body.memory = try gathered.toOwnedSlice(self.gpa);
            body.memory_used = body.memory.len;
            body.storage = .heap;
            body.mode = .gathered;
            self.take_back(pair[0]);
            return null;
        }

        fn take_back(self: *Self, fd: core.sys.Fd) void {
            var left: usize = 0;
            var waste: [512]u8 = undefined;
            while (true) {
                const count = core.sys.recv(fd, &waste) catch 0;
                if (count == 0) break;
                left += count;
            }
            self.client.at -= left;
        }
    };
}

/// Nothing here holds a GIL.
const interlude: core.body.Interlude = .{ .leave = leave, .enter = enter };

fn leave() ?*anyopaque {
    return null;
}

fn enter(_: ?*anyopaque) void {}

fn refused_head(err: request_head.Error) End {
    return .{ .refused = .{
        .status = request_head.status_of(err),
        .reason = request_head.reason_of(err),
    } };
}

fn refused_body(err: core.body.Error) End {
    return .{ .refused = switch (err) {
        error.TooLarge => .{ .status = 413, .reason = "body_too_large" },
        error.OutOfMemory => .{ .status = 503, .reason = "out_of_memory" },
        error.NoSpace => .{ .status = 507, .reason = "no_space_for_body" },
        error.Unexpected => .{ .status = 500, .reason = "temporary_file" },
        error.ClientGone, error.TimedOut => unreachable,
        else => |bad| blk: {
            const chunk_error: core.chunked.Error = @errorCast(bad);
            break :blk .{
                .status = core.chunked.status_of(chunk_error),
                .reason = core.chunked.reason_of(chunk_error),
            };
        },
    } };
}

//! The response of one request as a worker writes it: head, framing, body, end (RFC 9112 6 and 7).
//!
//! Bytes go straight to the socket. What it does not take is kept for the poller to send, up to a
//! limit; past it the worker waits, without the GIL, until the client has taken enough. Whatever the
//! application does, the client can tell a whole response from a broken one: a response that ends
//! early closes the connection before its announced end. Owner: a worker, for one request at a time.

const std = @import("std");
const sys = @import("sys.zig");
const date_module = @import("date.zig");
const response_head = @import("response_head.zig");
const body_module = @import("body.zig");
const Connection = @import("connection.zig").Connection;
const Exchange = @import("exchange.zig").Exchange;
const Framing = response_head.Framing;
const ResponseHead = response_head.ResponseHead;

pub const Limits = struct {
    /// Of output kept for a slow client.
    memory_bytes_max: usize,
    /// Without progress.
    timeout_ms: u64,
};

pub const WriteError = error{
    /// Nothing more can be sent: the client left, or took nothing for too long.
    ClientGone,
    /// The application gave more than its own Content-Length; the rest was cut.
    BodyTooLong,
} || response_head.Error;

pub const FinishError = WriteError || error{
    /// The application gave less than its own Content-Length.
    BodyTooShort,
};

/// A body up to this size is copied behind the head, to leave in one piece with it.
const copied_bytes_max = 8 * 1024;

pub const Reply = struct {
    gpa: std.mem.Allocator,
    head: ResponseHead,
    /// For interim responses, which may come between `start` and the first byte of the body.
    interim: ResponseHead,
    date: date_module.Date = .{},
    limits: Limits,
    interlude: body_module.Interlude,
    /// The server is about to end: responses say that the connection closes.
    draining: *const std.atomic.Value(bool),
    // Of the request being answered; set by `begin`.
    connection: *Connection = undefined,
    exchange: *Exchange = undefined,
    /// `start` has been called: there is a head to send.
    started: bool = false,
    head_sent: bool = false,
    finished: bool = false,
    /// The connection cannot be used for another request.
    must_close: bool = false,
    /// Nothing can be sent any more.
    broken: bool = false,
    framing: Framing = .none,
    remaining: u64 = 0,
    /// For the log.
    body_bytes: u64 = 0,

    pub fn init(
        gpa: std.mem.Allocator,
        limits: Limits,
        interlude: body_module.Interlude,
        draining: *const std.atomic.Value(bool),
    ) Reply {
        return .{
            .gpa = gpa,
            .head = .init(gpa),
            .interim = .init(gpa),
            .limits = limits,
            .interlude = interlude,
            .draining = draining,
        };
    }

    pub fn deinit(self: *Reply) void {
        self.head.deinit();
        self.interim.deinit();
    }

    /// Sets up for a connection's request. With `may_persist` false the response says that the
    /// connection will be closed.
    pub fn begin(
        self: *Reply,
        connection: *Connection,
        exchange: *Exchange,
        may_persist: bool,
    ) void {
        self.connection = connection;
        self.exchange = exchange;
        self.started = false;
        self.head_sent = false;
        self.finished = false;
        self.must_close = !may_persist or !exchange.head.persistent;
        self.broken = false;
        self.framing = .none;
        self.remaining = 0;
        self.body_bytes = 0;
    }

    /// Begins the head, or begins it anew as long as it was not sent.
    pub fn start(self: *Reply, status: []const u8) response_head.Error!void {
        std.debug.assert(!self.head_sent);
        self.started = false;
        try self.head.begin(status);
        self.started = true;
    }

    pub fn is_head_request(self: *const Reply) bool {
        const head = &self.exchange.head;
        return std.mem.eql(u8, head.method.of(self.exchange.bytes), "HEAD");
    }

    /// Sends a piece of the body, and the head before the first. `length_known` is the length of
    /// the whole body where the caller knows it.
    pub fn write(self: *Reply, bytes: []const u8, length_known: ?u64) WriteError!void {
        if (self.broken) return error.ClientGone;
        if (!self.head_sent) {
            try self.send_head(bytes, length_known);
        } else {
            try self.send_piece(bytes);
        }
    }

    /// Whether an interim response can be sent: HTTP/1.0 has none (RFC 9110 15.2), and after the
    /// final head it would be part of the body.
    pub fn takes_interim(self: *const Reply) bool {
        return !self.head_sent and !self.broken and self.exchange.head.version == .http_1_1;
    }

    /// Sends what was put into `interim`.
    pub fn send_early_hints(self: *Reply) WriteError!void {
        return self.send(&.{try self.interim.finish_early_hints()});
    }

    /// Ends the response. Afterwards `must_close` says whether the connection can go on.
    pub fn finish(self: *Reply) FinishError!void {
        if (self.broken) return error.ClientGone;
        if (!self.head_sent) try self.send_head("", 0);
        self.finished = true;
        switch (self.framing) {
            .none => {},
            .content_length => if (self.remaining > 0) {
                self.must_close = true;
                return error.BodyTooShort;
            },
            .chunked => try self.send(&.{"0\r\n\r\n"}),
            .until_close => {},
        }
    }

    /// Gives the response up: the client sees the connection close before the response's end.
    pub fn abort(self: *Reply) void {
        self.must_close = true;
        // Bytes that are framed as a whole response must not follow.
        if (self.head_sent and self.framing == .until_close) self.broken = true;
    }

    // ---- Head and framing ----------------------------------------------------------------------

    fn choose_framing(self: *const Reply, length_known: ?u64) Framing {
        if (self.head.is_bodiless() or self.is_head_request()) return .none;
        if (self.head.content_length) |length| return .{ .content_length = length };
        if (length_known) |length| return .{ .content_length = length };
        return switch (self.exchange.head.version) {
            .http_1_1 => .chunked,
            .http_1_0 => .until_close,
        };
    }

    fn send_head(self: *Reply, first: []const u8, length_known: ?u64) WriteError!void {
        self.framing = self.choose_framing(length_known);
        if (self.framing == .until_close) self.must_close = true;
        if (self.framing == .content_length) self.remaining = self.framing.content_length;
        // A body that the client was not asked for cannot be told from the next request.
        if (!self.exchange.body.complete) self.must_close = true;
        // Decided here and not when the request came: the client must not use what is about to go.
        if (self.draining.load(.monotonic)) self.must_close = true;
        const head = try self.head.finish(
            self.framing,
            self.persistence(),
            self.date.at(sys.realtime_seconds()),
        );
        self.head_sent = true;
        if (self.framing == .none) return self.send(&.{head});
        const too_long = self.framing == .content_length and first.len > self.remaining;
        const piece = if (too_long) first[0..@intCast(self.remaining)] else first;
        try self.send_first(head, piece);
        if (too_long) return self.refuse_rest();
    }

    fn persistence(self: *const Reply) response_head.Persistence {
        if (self.must_close) return .close;
        return switch (self.exchange.head.version) {
            .http_1_1 => .implied,
            .http_1_0 => .keep_alive,
        };
    }

    /// Head and first piece in one send; copied together when that is cheaper than two pieces.
    fn send_first(self: *Reply, head: []const u8, piece: []const u8) WriteError!void {
        self.note_sent(piece.len);
        if (self.framing == .chunked) {
            if (piece.len == 0) return self.send(&.{head});
            var storage: [chunk_head_bytes_max]u8 = undefined;
            const chunk_head = write_chunk_head(&storage, piece.len);
            return self.send(&.{ head, chunk_head, piece, "\r\n" });
        }
        if (piece.len > copied_bytes_max) return self.send(&.{ head, piece });
        @memcpy(try self.head.tail(piece.len), piece);
        return self.send(&.{self.head.written()});
    }

    fn send_piece(self: *Reply, bytes: []const u8) WriteError!void {
        if (bytes.len == 0) return;
        switch (self.framing) {
            .none => return,
            .until_close => {
                self.note_sent(bytes.len);
                return self.send(&.{bytes});
            },
            .content_length => {
                const too_long = bytes.len > self.remaining;
                const piece = if (too_long) bytes[0..@intCast(self.remaining)] else bytes;
                self.note_sent(piece.len);
                if (piece.len > 0) try self.send(&.{piece});
                if (too_long) return self.refuse_rest();
            },
            .chunked => {
                self.note_sent(bytes.len);
                var storage: [chunk_head_bytes_max]u8 = undefined;
                return self.send(&.{ write_chunk_head(&storage, bytes.len), bytes, "\r\n" });
            },
        }
    }

    fn refuse_rest(self: *Reply) WriteError {
        self.must_close = true;
        return error.BodyTooLong;
    }

    fn note_sent(self: *Reply, count: usize) void {
        self.body_bytes += count;
        if (self.framing == .content_length) self.remaining -= count;
    }

    const chunk_head_bytes_max = 18;

    fn write_chunk_head(storage: *[chunk_head_bytes_max]u8, size: usize) []const u8 {
        return std.fmt.bufPrint(storage, "{x}\r\n", .{size}) catch unreachable; // 16 digits and CRLF
    }

    // ---- Bytes ---------------------------------------------------------------------------------

    /// Sends, keeps or waits until every byte is sent or kept.
    fn send(self: *Reply, pieces: []const []const u8) WriteError!void {
        if (self.broken) return error.ClientGone;
        var vector: [4]sys.Iovec = undefined;
        var count: usize = 0;
        for (pieces) |piece| if (piece.len > 0) {
            vector[count] = .{ .base = piece.ptr, .len = piece.len };
            count += 1;
        };
        var rest: []sys.Iovec = vector[0..count];
        const output = &self.exchange.output;
        // What was kept before goes first; it has been tried and the socket was full.
        if (output.pending().len > 0) return self.keep(rest);
        while (rest.len > 0) {
            const sent = self.send_once(rest) catch |err| switch (err) {
                error.WouldBlock => return self.keep(rest),
                error.OutOfMemory, error.ConnectionGone, error.Unexpected => return self.fail(),
            };
            rest = skip(rest, sent);
        }
    }

    fn send_once(self: *Reply, pieces: []const sys.Iovec) sys.WriteError!usize {
        if (pieces.len == 1) {
            return sys.send(self.connection.fd, pieces[0].base[0..pieces[0].len]);
        }
        return sys.send_vector(self.connection.fd, pieces);
    }

    /// Keeps what fits into the limit; for the rest it waits until the client takes some.
    fn keep(self: *Reply, pieces: []sys.Iovec) WriteError!void {
        var rest = pieces;
        const output = &self.exchange.output;
        while (rest.len > 0) {
            var total: usize = 0;
            for (rest) |piece| total += piece.len;
            if (output.pending().len + total <= self.limits.memory_bytes_max) {
                for (rest) |piece| {
                    output.append(self.gpa, piece.base[0..piece.len]) catch return self.fail();
                }
                return;
            }
            try self.wait_writable();
            if (output.pending().len > 0) {
                try self.flush();
            } else {
                const sent = self.send_once(rest) catch |err| switch (err) {
                    error.WouldBlock => continue,
                    error.OutOfMemory, error.ConnectionGone, error.Unexpected => {
                        return self.fail();
                    },
                };
                rest = skip(rest, sent);
            }
        }
    }

    fn flush(self: *Reply) WriteError!void {
        const output = &self.exchange.output;
        const count = sys.send(self.connection.fd, output.pending()) catch |err| switch (err) {
            error.WouldBlock => return,
            error.OutOfMemory, error.ConnectionGone, error.Unexpected => return self.fail(),
        };
        output.discard(self.gpa, count);
    }

    fn wait_writable(self: *Reply) WriteError!void {
        const fd = self.connection.fd;
        const ready = self.interlude.wait_ready(fd, .writable, self.limits.timeout_ms);
        if (!ready) return self.fail();
    }

    fn fail(self: *Reply) WriteError {
        self.broken = true;
        self.must_close = true;
        return error.ClientGone;
    }

    fn skip(pieces: []sys.Iovec, count: usize) []sys.Iovec {
        var rest = pieces;
        var left = count;
        while (rest.len > 0 and left >= rest[0].len) {
            left -= rest[0].len;
            rest = rest[1..];
        }
        if (left > 0) {
            rest[0].base += left;
            rest[0].len -= left;
        }
        return rest;
    }
};

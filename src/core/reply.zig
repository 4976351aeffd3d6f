//! The response of one request as a worker writes it: head, framing, body, end (RFC 9112 6 and 7).
//!
//! Bytes go straight to the socket. What it does not take is kept for the poller to send, up to a
//! limit. Past it a producer that can be parked is told so; one that cannot (PEP 3333's `write`)
//! waits without the GIL until the client has taken enough. Whatever the
//! application does, the client can tell a whole response from a broken one: a response that ends
//! early closes the connection before its announced end. Owner: a worker, for one request at a
//! time.

const std = @import("std");
const sys = @import("sys.zig");
const date_module = @import("date.zig");
const response_head = @import("response_head.zig");
const body_module = @import("body.zig");
const Connection = @import("connection.zig").Connection;
const Call = @import("overdue.zig").Call;
const ClientWait = @import("eviction.zig").ClientWait;
const access_log = @import("access_log.zig");
const log_text = @import("log_text.zig");
const Counter = @import("metrics.zig").Counter;
const Phase = @import("timing.zig").Phase;
const exchange_module = @import("exchange.zig");
const FilePart = @import("file_part.zig").FilePart;
const Exchange = exchange_module.Exchange;
const Output = exchange_module.Output;
const Framing = response_head.Framing;
const ResponseHead = response_head.ResponseHead;

pub const Limits = struct {
    /// Of output kept for a slow client.
    memory_bytes_max: usize,
    /// Without progress.
    timeout_ms: u64,
    /// The same while the server drains.
    drain_timeout_ms: u64 = std.math.maxInt(u64),
    /// Whether the head says where the time went (W3C Server Timing).
    server_timing: bool = false,
};

pub const WriteError = error{
    /// Nothing more can be sent: the client left, or took nothing for too long.
    ClientGone,
    /// The application gave more than its own Content-Length; the rest was cut.
    BodyTooLong,
    /// See `Progress.is_superseded`. Nothing has been sent.
    Superseded,
} || response_head.Error;

pub const FinishError = WriteError || error{
    /// The application gave less than its own Content-Length.
    BodyTooShort,
};

/// A body up to this size is copied behind the head, to leave in one piece with it.
const copied_bytes_max = 8 * 1024;
/// A piece that the socket does not take is copied up to this size, and pinned beyond it.
const pinned_bytes_min = 16 * 1024;

/// A file up to this size is read, and leaves with the head in one send.
const copied_file_bytes_max = 32 * 1024;
/// Of a file, by the worker itself; the poller sends the rest.
const worker_file_bytes_max = 1024 * 1024;

const chunk_end = "\r\n";

/// Pieces that follow one another faster than this leave together: PEP 3333, "Buffering and
/// Streaming", lets another thread see to it that a block is sent while the next one is produced.
const burst_ns_max = 200 * std.time.ns_per_us;

/// How often that other thread passes by a socket that was full, at the most: some 20 ms.
const rests_max = 31;

/// That other thread: it calls `Reply.tick` within a few milliseconds of a wake, and again as long
/// as that wants it.
pub const Pusher = struct {
    context: *anyopaque,
    wake: *const fn (*anyopaque) void,
};

/// Whether a producer may go on.
pub const Flow = enum {
    more,
    /// As much is ahead of the client as may be, or a piece is pinned: the producer parks.
    full,
};

/// How far a reply is; kept in the exchange while its producer is parked.
pub const Progress = struct {
    /// `start` has been called: there is a head to send.
    started: bool = false,
    /// The application began this head after the request's body had failed: it is not sent, and the
    /// server answers for what it knows to be the client's fault, or its own limit.
    is_superseded: bool = false,
    head_sent: bool = false,
    finished: bool = false,
    /// The connection cannot be used for another request.
    must_close: bool = false,
    /// Nothing can be sent any more.
    broken: bool = false,
    /// The application gave more than its own Content-Length; the rest was cut.
    too_long: bool = false,
    /// The wait that a suspended producer goes on from ended by its time.
    timed_out: bool = false,
    /// The application lets any worker go on when it has parked.
    any_thread: bool = false,
    framing: Framing = .none,
    remaining: u64 = 0,
    /// For the log.
    body_bytes: u64 = 0,
};

// For replies that nobody watches, in tests.
var unwatched_bytes: Counter = .{};
var unwatched_phase: std.atomic.Value(Phase) = .init(.app);

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
    progress: Progress = .{},
    /// Whether the write in progress may wait for the client.
    waits: bool = true,
    // Where others look; see `watch`.
    bytes_sent: *Counter = &unwatched_bytes,
    phase: *std.atomic.Value(Phase) = &unwatched_phase,
    /// Whose response it is, where application calls have a time limit.
    call: ?*Call = null,
    pusher: ?Pusher = null,
    /// Its thread waits for the client, which the poller may end.
    client_wait: ClientWait = .{},
    /// Whether the piece in progress may wait in the kernel for the next one.
    holds: bool = false,
    /// When the last piece was given (`monotonic_ns`).
    piece_ns: u64 = 0,
    /// The socket that may hold something back. Set by the worker, taken by whoever pushes.
    held: std.atomic.Value(sys.Fd) = .init(sys.no_fd),
    /// Whether the output is the pusher's while the application makes its next piece. The worker
    /// lends it and takes it back; the pusher sends under `lending`, and ends the loan when nothing
    /// is left.
    is_lent: std.atomic.Value(bool) = .init(false),
    lending: std.Thread.Mutex = .{},
    /// How often the pusher lets a socket be that was full, and how often it still does. Its own.
    rests: u8 = 0,
    rests_left: u8 = 0,

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

    /// From here on tells there what it has sent and when it waits for the client.
    pub fn watch(self: *Reply, bytes_sent: *Counter, phase: *std.atomic.Value(Phase)) void {
        self.bytes_sent = bytes_sent;
        self.phase = phase;
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
        self.progress = .{ .must_close = !may_persist or !exchange.head.persistent };
    }

    /// Goes on with a reply whose producer was parked.
    pub fn proceed(self: *Reply, connection: *Connection, exchange: *Exchange) void {
        self.connection = connection;
        self.exchange = exchange;
        self.progress = exchange.progress;
        if (connection.abandoned) self.progress.broken = true;
    }

    /// Takes the head away from a reply that parks before it was sent; null where there is none.
    pub fn take_head(self: *Reply) ?ResponseHead {
        if (!self.progress.started or self.progress.head_sent) return null;
        var head = self.head;
        self.head = .init(self.gpa);
        head.shrink();
        return head;
    }

    /// Gives it back, to the reply of any worker.
    pub fn put_head(self: *Reply, head: ResponseHead) void {
        self.head.deinit();
        self.head = head;
    }

    /// Leaves the reply as it is for another time.
    pub fn park(self: *Reply, continuation: *anyopaque) void {
        self.exchange.progress = self.progress;
        self.exchange.continuation = continuation;
    }

    /// Begins the head, or begins it anew as long as it was not sent.
    pub fn start(self: *Reply, status: []const u8) response_head.Error!void {
        try self.prepare(status);
        self.progress.started = true;
    }

    /// The same for a head that counts once the caller sets `started`, when its fields are there.
    pub fn prepare(self: *Reply, status: []const u8) response_head.Error!void {
        std.debug.assert(!self.progress.head_sent);
        self.progress.started = false;
        self.progress.is_superseded = false;
        try self.head.begin(status);
    }

    /// Sends a piece of the body, and the head before the first; waits while too much is ahead of
    /// the client. `length_known` is the length of the whole body where the caller knows it.
    pub fn write(self: *Reply, bytes: []const u8, length_known: ?u64) WriteError!void {
        self.waits = true;
        try self.write_piece(bytes, length_known);
        if (self.progress.too_long) return error.BodyTooLong;
        self.lend();
    }

    /// The same without ever waiting. After `full`, `bytes` may be in use until the output is
    /// empty, and nothing may be written before that.
    pub fn offer(self: *Reply, bytes: []const u8, length_known: ?u64) WriteError!Flow {
        self.waits = false;
        try self.write_piece(bytes, length_known);
        const output = &self.exchange.output;
        if (self.progress.too_long and output.pinned.len == 0) return error.BodyTooLong;
        const is_full = output.pinned.len > 0 or
            output.kept_bytes() > self.ahead_max(.parking);
        if (is_full) return .full;
        self.lend();
        return .more;
    }

    /// How much may be ahead of the client before the producer parks, or its thread waits.
    fn ahead_max(self: *const Reply, comptime then: enum { parking, waiting }) usize {
        const limit = self.limits.memory_bytes_max;
        const memory = self.exchange.buffer_memory orelse return limit;
        return if (then == .parking) memory.share(limit) else memory.share_of_waiting(limit);
    }

    /// Whether the body can come from a file: its length is announced, or the head can still do so.
    pub fn takes_file(self: *const Reply) bool {
        if (!self.progress.head_sent) return true;
        return switch (self.progress.framing) {
            .none, .content_length => true,
            .chunked, .until_close => false,
        };
    }

    /// What of the announced length has not come yet; null where none was announced.
    pub fn length_left(self: *const Reply) ?u64 {
        if (!self.progress.head_sent) return self.head.content_length;
        return if (self.progress.framing == .content_length) self.progress.remaining else null;
    }

    /// As much of a file's block as the announced length still has room for.
    pub fn cut_to_length(self: *const Reply, bytes: []const u8) []const u8 {
        const left = self.length_left() orelse return bytes;
        return bytes[0..@intCast(@min(bytes.len, left))];
    }

    /// Sends what is left of a file as the rest of the body, no more than was announced, and takes
    /// over its descriptor. After `full` the rest is in the output. The GIL is given away: what is
    /// not in the page cache comes from the disk.
    pub fn offer_file(self: *Reply, file: FilePart) WriteError!Flow {
        self.take_back();
        var part = file;
        errdefer part.close();
        if (self.progress.broken) return error.ClientGone;
        self.waits = false;
        var head: []const u8 = "";
        if (!self.progress.head_sent) {
            // For HEAD as for GET (RFC 9110 9.3.2); 204 and 304 have their own say.
            if (self.head.content_length == null and !self.head.is_bodiless()) {
                self.head.content_length = part.remaining;
            }
            head = try self.finish_head(part.remaining);
        }
        if (self.progress.framing == .none) {
            part.close();
            if (head.len > 0) try self.send(&.{head});
            return .more;
        }
        part.remaining = @min(part.remaining, self.progress.remaining);
        self.note_sent(part.remaining);
        const thread_state = self.interlude.leave();
        defer self.interlude.enter(thread_state);
        if (part.remaining <= copied_file_bytes_max) {
            defer part.close();
            return self.send_small_file(head, &part);
        }
        const output = &self.exchange.output;
        output.append(self.gpa, head) catch return self.fail();
        output.file = part;
        part = .{};
        var budget: u64 = worker_file_bytes_max;
        while (!output.is_empty() and budget > 0) {
            budget -|= try self.send_output(budget) orelse break;
        }
        return if (output.is_empty()) .more else .full;
    }

    /// Reads the file to the memory behind the head.
    fn send_small_file(self: *Reply, head: []const u8, part: *const FilePart) WriteError!Flow {
        const size: usize = @intCast(part.remaining);
        // Without a head of its own it begins anew behind the one that was sent.
        const room = self.head.tail(size) catch return self.fail();
        const count = sys.read_at(part.fd, room, part.offset) catch 0;
        // What is missing is the end's business: the response is shorter than announced.
        self.progress.remaining += size - count;
        const written = self.head.written();
        const end = written.len - (size - count);
        try self.send(&.{written[end - count - head.len .. end]});
        const is_full = self.exchange.output.kept_bytes() > self.ahead_max(.parking);
        return if (is_full) .full else .more;
    }

    /// Sends once of what was kept; null when the socket takes no more. Not with the GIL.
    fn send_output(self: *Reply, bytes_max: u64) WriteError!?usize {
        const output = &self.exchange.output;
        const fd = self.connection.fd;
        const count = output.send(self.gpa, fd, bytes_max) catch |err| switch (err) {
            error.WouldBlock => return null,
            error.FileEnded => {
                self.progress.remaining += output.file.remaining;
                output.drop_file();
                return null;
            },
            error.OutOfMemory, error.ConnectionGone, error.Unexpected => return self.fail(),
        };
        self.count_sent(count);
        return count;
    }

    fn count_sent(self: *Reply, count: usize) void {
        self.exchange.record.bytes_sent += count;
        self.bytes_sent.add(count);
    }

    /// Waits until everything has been sent, for a producer that got `full` and cannot park.
    pub fn settle(self: *Reply) WriteError!void {
        self.take_back();
        while (!self.exchange.output.is_empty()) {
            try self.wait_writable();
            try self.flush();
        }
        if (self.progress.too_long) return error.BodyTooLong;
    }

    /// Sends what is held back. Any thread, while the server lives.
    pub fn push(self: *Reply) void {
        const fd = self.held.swap(sys.no_fd, .seq_cst);
        if (fd != sys.no_fd) sys.push(fd);
    }

    // ---- What is sent while the application makes its next piece -------------------------------

    /// Lets the pusher send what is kept. Whatever the worker does next with this reply takes it
    /// back first.
    fn lend(self: *Reply) void {
        if (self.exchange.output.is_empty()) return;
        const pusher = self.pusher orelse return;
        self.is_lent.store(true, .seq_cst);
        pusher.wake(pusher.context);
    }

    inline fn take_back(self: *Reply) void {
        if (self.is_lent.load(.acquire)) self.end_loan();
    }

    fn end_loan(self: *Reply) void {
        self.lending.lock();
        defer self.lending.unlock();
        self.is_lent.store(false, .monotonic);
    }

    /// The worker gives the connection on, and the pusher must not mean it any more. What is held
    /// back has been pushed, or is followed by something that pushes it.
    pub fn leave(self: *Reply) void {
        self.take_back();
        if (self.held.load(.monotonic) != sys.no_fd) self.held.store(sys.no_fd, .monotonic);
    }

    /// The pusher's. Whether there was, or is, something to send.
    pub fn tick(self: *Reply) bool {
        const is_held = self.held.load(.seq_cst) != sys.no_fd;
        if (is_held) self.push();
        if (!self.is_lent.load(.seq_cst)) return is_held;
        self.send_lent();
        return true;
    }

    fn send_lent(self: *Reply) void {
        if (!self.lending.tryLock()) return;
        defer self.lending.unlock();
        if (!self.is_lent.load(.acquire)) return;
        if (self.rests_left > 0) {
            self.rests_left -= 1;
            return;
        }
        const output = &self.exchange.output;
        const count = output.send(self.gpa, self.connection.fd, 0) catch |err| switch (err) {
            error.WouldBlock => {
                self.rests = @min(self.rests * 2 + 1, rests_max);
                self.rests_left = self.rests;
                return;
            },
            // Who writes next hears of it.
            error.FileEnded, error.OutOfMemory, error.ConnectionGone, error.Unexpected => {
                return self.is_lent.store(false, .release);
            },
        };
        self.rests = 0;
        self.count_sent(count);
        if (output.is_empty()) self.is_lent.store(false, .release);
    }

    // ---- One piece -----------------------------------------------------------------------------

    fn write_piece(self: *Reply, bytes: []const u8, length_known: ?u64) WriteError!void {
        self.take_back();
        if (self.progress.broken) return error.ClientGone;
        if (self.call) |call| call.touch(sys.monotonic_ms());
        self.holds = self.may_hold(bytes.len, length_known == bytes.len);
        defer self.holds = false;
        if (!self.progress.head_sent) {
            try self.send_head(bytes, length_known);
        } else {
            try self.send_piece(bytes);
        }
    }

    /// Whether this piece can wait for the next: not the first, which may be all for a while, nor
    /// the last.
    fn may_hold(self: *Reply, bytes: usize, is_all: bool) bool {
        if (!sys.can_hold or self.pusher == null or is_all) return false;
        const now_ns = sys.monotonic_ns();
        defer self.piece_ns = now_ns;
        if (!self.progress.head_sent or now_ns -| self.piece_ns >= burst_ns_max) return false;
        return switch (self.progress.framing) {
            .none => false,
            .content_length => bytes < self.progress.remaining,
            .chunked, .until_close => true,
        };
    }

    /// Whether an interim response can be sent: HTTP/1.0 has none (RFC 9110 15.2), and after the
    /// final head it would be part of the body.
    pub fn takes_interim(self: *const Reply) bool {
        if (self.progress.head_sent or self.progress.broken) return false;
        return self.exchange.head.version == .http_1_1;
    }

    /// Sends what was put into `interim`.
    pub fn send_early_hints(self: *Reply) WriteError!void {
        self.take_back();
        self.waits = true;
        const head = try self.interim.finish_early_hints();
        if (self.call) |call| if (!call.begin_interim()) return self.fail();
        defer if (self.call) |call| call.end_interim(self.exchange.output.is_empty());
        self.exchange.record.head_bytes_sent += head.len;
        return self.send(&.{head});
    }

    /// Ends the response. Afterwards `must_close` says whether the connection can go on.
    pub fn finish(self: *Reply) FinishError!void {
        self.take_back();
        if (self.progress.broken) return error.ClientGone;
        self.waits = false;
        if (!self.progress.head_sent) try self.send_head("", 0);
        self.progress.finished = true;
        switch (self.progress.framing) {
            .none => {},
            .content_length => if (self.progress.remaining > 0) {
                self.progress.must_close = true;
                return error.BodyTooShort;
            },
            .chunked => try self.send(&.{"0\r\n\r\n"}),
            .until_close => {},
        }
    }

    /// Gives the response up: the client sees the connection close before the response's end.
    pub fn abort(self: *Reply) void {
        self.progress.must_close = true;
        if (self.progress.head_sent and self.progress.framing == .until_close) {
            // Only a reset tells such an end from the end of a whole response.
            self.connection.resets = true;
            self.progress.broken = true;
        }
    }

    // ---- Head and framing ----------------------------------------------------------------------

    fn choose_framing(self: *const Reply, length_known: ?u64) Framing {
        if (self.head.is_bodiless() or self.exchange.is_head_request()) return .none;
        if (self.head.content_length) |length| return .{ .content_length = length };
        if (length_known) |length| return .{ .content_length = length };
        return switch (self.exchange.head.version) {
            .http_1_1 => .chunked,
            .http_1_0 => .until_close,
        };
    }

    /// Decides the framing and ends the head, which counts as sent from here.
    fn finish_head(self: *Reply, length_known: ?u64) WriteError![]const u8 {
        if (self.progress.is_superseded) return error.Superseded;
        self.progress.framing = self.choose_framing(length_known);
        if (self.progress.framing == .until_close) self.progress.must_close = true;
        if (self.head.asks_close) self.progress.must_close = true;
        switch (self.progress.framing) {
            .content_length => |length| self.progress.remaining = length,
            .none, .chunked, .until_close => {},
        }
        // A body that the client was not asked for cannot be told from the next request.
        if (!self.exchange.body.complete) self.progress.must_close = true;
        // After the final head nobody can be told to go on (RFC 9110 10.1.1).
        self.exchange.body.continue_due = false;
        // Decided here and not when the request came: the client must not use what is about to go.
        if (self.draining.load(.acquire)) self.progress.must_close = true;
        self.head.request_id = self.exchange.request_id();
        if (self.limits.server_timing) try self.add_server_timing();
        const head = try self.head.finish(
            self.progress.framing,
            self.persistence(),
            self.date.at(sys.realtime_seconds()),
        );
        // Nothing of it is sent when the poller has answered, since it took too long.
        if (self.call) |call| if (!call.claim()) return self.fail();
        self.progress.head_sent = true;
        self.exchange.record.status = self.head.status;
        self.exchange.record.head_bytes_sent += head.len;
        return head;
    }

    fn send_head(self: *Reply, first: []const u8, length_known: ?u64) WriteError!void {
        const head = try self.finish_head(length_known);
        if (self.progress.framing == .none) return self.send(&.{head});
        const has_length = self.progress.framing == .content_length;
        const too_long = has_length and first.len > self.progress.remaining;
        const piece = if (too_long) first[0..@intCast(self.progress.remaining)] else first;
        if (too_long) self.cut();
        return self.send_first(head, piece);
    }

    fn add_server_timing(self: *Reply) response_head.Error!void {
        const timing = &self.exchange.record.timing;
        timing.pass(.app, sys.monotonic_ns());
        var storage: [access_log.server_timing_bytes_max]u8 = undefined;
        var line: log_text.Line = .{ .buffer = &storage };
        access_log.put_server_timing(&line, timing);
        return self.head.add("Server-Timing", line.written());
    }

    fn persistence(self: *const Reply) response_head.Persistence {
        if (self.progress.must_close) return .close;
        return switch (self.exchange.head.version) {
            .http_1_1 => .implied,
            .http_1_0 => .keep_alive,
        };
    }

    /// Head and first piece in one send; copied together when that is cheaper than two pieces.
    fn send_first(self: *Reply, head: []const u8, piece: []const u8) WriteError!void {
        self.note_sent(piece.len);
        if (self.progress.framing == .chunked) {
            if (piece.len == 0) return self.send(&.{head});
            var storage: [chunk_head_bytes_max]u8 = undefined;
            const chunk_head = write_chunk_head(&storage, piece.len);
            return self.send(&.{ head, chunk_head, piece, chunk_end });
        }
        if (piece.len > copied_bytes_max) return self.send(&.{ head, piece });
        const tail = self.head.tail(piece.len) catch return self.send(&.{ head, piece });
        @memcpy(tail, piece);
        return self.send(&.{self.head.written()});
    }

    fn send_piece(self: *Reply, bytes: []const u8) WriteError!void {
        if (bytes.len == 0) return;
        switch (self.progress.framing) {
            .none => return,
            .until_close => {
                self.note_sent(bytes.len);
                return self.send(&.{bytes});
            },
            .content_length => {
                const too_long = bytes.len > self.progress.remaining;
                const piece = if (too_long) bytes[0..@intCast(self.progress.remaining)] else bytes;
                self.note_sent(piece.len);
                if (too_long) self.cut();
                if (piece.len > 0) return self.send(&.{piece});
            },
            .chunked => {
                self.note_sent(bytes.len);
                var storage: [chunk_head_bytes_max]u8 = undefined;
                return self.send(&.{ write_chunk_head(&storage, bytes.len), bytes, chunk_end });
            },
        }
    }

    /// The caller hears of it when what was cut has left, or is kept.
    fn cut(self: *Reply) void {
        self.progress.must_close = true;
        self.progress.too_long = true;
    }

    fn note_sent(self: *Reply, count: u64) void {
        self.progress.body_bytes += count;
        if (self.progress.framing == .content_length) self.progress.remaining -= count;
    }

    const chunk_head_bytes_max = 18;

    fn write_chunk_head(storage: *[chunk_head_bytes_max]u8, size: usize) []const u8 {
        // At the most 16 digits and CRLF.
        return std.fmt.bufPrint(storage, "{x}\r\n", .{size}) catch unreachable;
    }

    // ---- Bytes ---------------------------------------------------------------------------------

    /// Sends, keeps or waits until every byte is sent or kept.
    fn send(self: *Reply, pieces: []const []const u8) WriteError!void {
        if (self.progress.broken) return error.ClientGone;
        var vector: [4]sys.Iovec = undefined;
        var count: usize = 0;
        for (pieces) |piece| if (piece.len > 0) {
            vector[count] = .{ .base = piece.ptr, .len = piece.len };
            count += 1;
        };
        var rest: []sys.Iovec = vector[0..count];
        // What was kept before goes first; it has been tried and the socket was full.
        if (!self.exchange.output.is_empty()) return self.keep(rest);
        while (rest.len > 0) {
            const sent = self.send_once(rest) catch |err| switch (err) {
                error.WouldBlock => return self.keep(rest),
                error.OutOfMemory, error.ConnectionGone, error.Unexpected => return self.fail(),
            };
            rest = skip(rest, sent);
        }
    }

    fn send_once(self: *Reply, pieces: []const sys.Iovec) sys.WriteError!usize {
        const fd = self.connection.fd;
        const count = if (self.holds)
            try self.send_held(pieces)
        else if (pieces.len == 1)
            try sys.send(fd, pieces[0].base[0..pieces[0].len])
        else
            try sys.send_vector(fd, pieces);
        self.count_sent(count);
        return count;
    }

    fn send_held(self: *Reply, pieces: []const sys.Iovec) sys.WriteError!usize {
        const fd = self.connection.fd;
        const count = try sys.send_held(fd, pieces);
        const pusher = self.pusher.?;
        if (self.held.swap(fd, .seq_cst) == sys.no_fd) pusher.wake(pusher.context);
        return count;
    }

    fn keep(self: *Reply, pieces: []sys.Iovec) WriteError!void {
        return if (self.waits) self.keep_or_wait(pieces) else self.keep_or_pin(pieces);
    }

    /// Copies what is small, and pins the one piece that may be large.
    fn keep_or_pin(self: *Reply, pieces: []const sys.Iovec) WriteError!void {
        const output = &self.exchange.output;
        for (pieces) |piece| {
            const bytes = piece.base[0..piece.len];
            if (output.pinned.len > 0) {
                std.debug.assert(bytes.len <= chunk_end.len);
                output.tail = chunk_end[chunk_end.len - bytes.len ..];
            } else if (bytes.len >= pinned_bytes_min and !self.is_own(bytes)) {
                output.pinned = bytes;
            } else {
                output.append(self.gpa, bytes) catch return self.fail();
            }
        }
    }

    /// Whether the bytes are the head's, which is written anew for the next response.
    fn is_own(self: *const Reply, bytes: []const u8) bool {
        const first = @intFromPtr(self.head.buffer.ptr);
        const at = @intFromPtr(bytes.ptr);
        return at >= first and at < first + self.head.buffer.len;
    }

    /// Keeps what fits into the limit; for the rest it waits until the client takes some.
    fn keep_or_wait(self: *Reply, pieces: []sys.Iovec) WriteError!void {
        var rest = pieces;
        const output = &self.exchange.output;
        while (rest.len > 0) {
            var total: usize = 0;
            for (rest) |piece| total += piece.len;
            if (output.kept_bytes() + total <= self.ahead_max(.waiting)) {
                for (rest) |piece| {
                    output.append(self.gpa, piece.base[0..piece.len]) catch return self.fail();
                }
                return;
            }
            try self.wait_writable();
            if (!output.is_empty()) {
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
        if (self.exchange.output.file.remaining == 0) {
            _ = try self.send_output(worker_file_bytes_max);
            return;
        }
        const thread_state = self.interlude.leave();
        defer self.interlude.enter(thread_state);
        _ = try self.send_output(worker_file_bytes_max);
    }

    fn wait_writable(self: *Reply) WriteError!void {
        const record = &self.exchange.record;
        record.timing.pass(.app, sys.monotonic_ns());
        self.phase.store(.write, .release);
        const end = self.wait_for_client();
        if (self.call) |call| call.touch(sys.monotonic_ms());
        self.phase.store(.app, .release);
        record.timing.pass(.write, sys.monotonic_ns());
        switch (end) {
            .ready => return,
            .timed_out => record.timed_out = .write,
            .evicted => {
                record.evicted = true;
                self.connection.resets = true;
            },
        }
        return self.fail();
    }

    fn wait_for_client(self: *Reply) ClientWait.End {
        const thread_state = self.interlude.leave();
        defer self.interlude.enter(thread_state);
        return self.client_wait.wait(self.connection, .{
            .timeout_ms = self.limits.timeout_ms,
            .drain_timeout_ms = self.limits.drain_timeout_ms,
        });
    }

    fn fail(self: *Reply) WriteError {
        self.progress.broken = true;
        self.progress.must_close = true;
        self.exchange.record.client_gone = true;
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

//! A request body: gathered before the application starts, or read by it as it comes.
//!
//! Gathered is the rule: the poller takes the body in, so that a slow client holds no thread. A
//! small one stays where it was received, a larger one gets memory of its own up to a limit, and
//! the rest goes to an unlinked file. Streamed is for `Expect: 100-continue` with Content-Length,
//! where the client waits for the application to ask (RFC 9110 10.1.1). A chunked body is gathered
//! even then: applications look for CONTENT_LENGTH, which is known only when the body is complete.
//! Owner: whoever owns the connection. GIL: not needed; reading a stream waits, and leaves the GIL
//! for that through `Interlude`.

const std = @import("std");
const chunked = @import("chunked.zig");
const refusal_module = @import("refusal.zig");
const sys = @import("sys.zig");
const pages = @import("pages.zig");
const BufferMemory = @import("buffer_memory.zig").BufferMemory;
const Exchange = @import("exchange.zig").Exchange;

pub const Limits = struct {
    bytes_max: u64,
    memory_bytes_max: usize,
    timeout_ms: u64,
    temporary_directory: []const u8,
    /// Until when streamed bodies are waited for (`sys.monotonic_ms`), where that is less than
    /// `timeout_ms`: a drain says so, also while a thread waits.
    receive_by_ms: ?*const std.atomic.Value(u64) = null,
    /// Null: as many streamed bodies as come.
    streams: ?*Streams = null,
};

/// A streamed body holds a thread for as long as its client takes, which no other client may feel:
/// so many at once are streamed, and the others gathered. Any thread.
pub const Streams = struct {
    max: u32,
    count: std.atomic.Value(u32) = .init(0),

    fn begin(self: *Streams) bool {
        if (self.count.fetchAdd(1, .monotonic) < self.max) return true;
        self.end();
        return false;
    }

    fn end(self: *Streams) void {
        _ = self.count.fetchSub(1, .monotonic);
    }
};

/// What a thread does before and after it waits: give the GIL away and take it back. What `leave`
/// returns is the thread's own and is shown to `enter`.
pub const Interlude = struct {
    leave: *const fn () ?*anyopaque,
    enter: *const fn (?*anyopaque) void,

    pub fn wait_ready(self: Interlude, fd: sys.Fd, what: sys.WaitFor, timeout_ms: u64) bool {
        const thread_state = self.leave();
        defer self.enter(thread_state);
        return sys.wait_ready(fd, what, timeout_ms);
    }
};

/// Why a body cannot be gathered.
pub const TakeError = chunked.Error || sys.OpenError || error{TooLarge};
/// Why the application cannot read on.
pub const ReadError = sys.FileError || error{ ClientGone, TimedOut, OutOfMemory };
pub const Error = TakeError || ReadError;

/// The answer to a request whose body cannot be had.
pub fn refusal_of(err: Error) refusal_module.Refusal {
    return switch (err) {
        error.TooLarge => .{ .status = 413, .reason = "body_too_large" },
        error.TimedOut => .{ .status = 408, .reason = "body_timeout" },
        error.OutOfMemory => .{ .status = 503, .reason = "out_of_memory" },
        error.DescriptorsExhausted => .{ .status = 503, .reason = "no_descriptors" },
        error.NoSpace => .{ .status = 507, .reason = "no_space_for_body" },
        error.Unexpected => .{ .status = 500, .reason = "temporary_file" },
        error.ClientGone => .{ .status = 400, .reason = "client_gone" },
        else => |bad| {
            const failure: chunked.Error = @errorCast(bad);
            return .{
                .status = chunked.status_of(failure),
                .reason = chunked.reason_of(failure),
            };
        },
    };
}

pub const continue_head = "HTTP/1.1 100 Continue\r\n\r\n";
/// First memory for a body whose length is not known.
const growing_bytes_first = 16 * 1024;
/// Of the fields after a chunked body.
const trailer_bytes_max = 8 * 1024;
/// Least room to receive chunked bytes into.
const receive_bytes_min = 4096;
/// How often whoever waits for a streamed body looks whether a drain has begun.
const look_ms = 500;

pub const Body = struct {
    mode: Mode = .none,
    storage: Storage = .in_place,
    /// All of it has been taken in.
    complete: bool = true,
    /// Content-Length: what is still to come.
    remaining: u64 = 0,
    decoder: ?chunked.Decoder = null,
    /// Where in the exchange's bytes the body's bytes that were not taken in yet begin.
    cursor: u32 = 0,
    /// Decoded bytes taken in so far.
    length: u64 = 0,
    /// `memory` is the start of the body; with `in_place` it is part of the exchange's buffer.
    memory: []u8 = &.{},
    memory_used: usize = 0,
    /// Where memory is counted, and how much of this body's is.
    buffer_memory: ?*BufferMemory = null,
    counted: usize = 0,
    /// What comes goes to the file from here.
    spills: bool = false,
    file: sys.Fd = sys.no_fd,
    file_length: u64 = 0,
    /// Of a chunked body: where its trailer fields are kept.
    trailers: []u8 = &.{},
    /// How far the application has read.
    position: u64 = 0,
    /// The client waits for 100 (Continue): whoever reads the body sends it.
    continue_due: bool = false,
    /// Where a streamed body is counted.
    streams: ?*Streams = null,

    const Mode = enum { none, gathered, streamed };
    /// `mapped` memory costs nothing before bytes come, whatever a client announces, and goes back
    /// to the system when the body is done with. `heap` is for chunked bodies that stay small.
    const Storage = enum { in_place, heap, mapped };

    pub fn deinit(self: *Body, gpa: std.mem.Allocator) void {
        if (self.buffer_memory) |memory| memory.remove(self.counted);
        self.free_memory(gpa);
        if (self.file != sys.no_fd) sys.close(self.file);
        gpa.free(self.trailers);
        if (self.streams) |streams| streams.end();
    }

    fn free_memory(self: *Body, gpa: std.mem.Allocator) void {
        switch (self.storage) {
            .in_place => {},
            .heap => gpa.free(self.memory),
            .mapped => pages.free(self.memory),
        }
    }

    /// The field lines after a chunked body, each with its CRLF, once the body is complete.
    pub fn trailer_section(self: *const Body) []const u8 {
        return if (self.decoder) |*decoder| decoder.trailer_section() else "";
    }

    /// Sets up for the head that was just parsed. Refuses what Content-Length tells to be too
    /// large.
    pub fn begin(
        self: *Body,
        exchange: *Exchange,
        gpa: std.mem.Allocator,
        limits: *const Limits,
    ) TakeError!void {
        const head = &exchange.head;
        self.buffer_memory = exchange.buffer_memory;
        self.cursor = head.head_bytes;
        exchange.request_end = head.head_bytes;
        switch (head.framing) {
            .none => return,
            .content_length => |length| {
                self.remaining = length;
                self.complete = length == 0;
                if (length > limits.bytes_max) return error.TooLarge;
            },
            .chunked => {
                if (!self.may_begin()) return error.OutOfMemory;
                self.trailers = try gpa.alloc(u8, trailer_bytes_max);
                self.count_memory(trailer_bytes_max);
                self.decoder = .init(.{
                    .trailer_buffer = self.trailers,
                    .trailer_bytes_max = trailer_bytes_max,
                });
            },
        }
        self.complete = self.decoder == null and self.remaining == 0;
        if (self.complete) return;
        const nothing_came = exchange.received == head.head_bytes;
        self.continue_due = head.expect == .continue_100 and nothing_came;
        if (self.continue_due and self.decoder == null and self.begin_stream(limits)) {
            self.mode = .streamed;
            return;
        }
        self.mode = .gathered;
        if (self.decoder != null or self.fits_in_place(exchange)) return;
        if (!self.may_begin()) return error.OutOfMemory;
        const bytes: usize = @intCast(@min(self.remaining, limits.memory_bytes_max));
        self.memory = try pages.alloc(u8, bytes);
        self.storage = .mapped;
    }

    fn begin_stream(self: *Body, limits: *const Limits) bool {
        const streams = limits.streams orelse return true;
        if (!streams.begin()) return false;
        self.streams = streams;
        return true;
    }

    fn fits_in_place(self: *const Body, exchange: *const Exchange) bool {
        return self.remaining <= exchange.bytes.len - self.cursor;
    }

    // ---- Gathering: the poller -----------------------------------------------------------------

    /// Where the poller shall receive to: the body's own memory where that saves a copy, else the
    /// exchange's buffer, or `scratch` for what goes to the file.
    pub fn receive_into(
        self: *Body,
        exchange: *Exchange,
        gpa: std.mem.Allocator,
        scratch: []u8,
    ) error{OutOfMemory}![]u8 {
        if (self.decoder != null) try exchange.ensure_space(gpa, receive_bytes_min);
        if (self.decoder != null or self.storage == .in_place) {
            return exchange.bytes[exchange.received..];
        }
        const room = self.memory_room();
        if (room.len > 0) return room;
        return scratch[0..@intCast(@min(scratch.len, self.remaining))];
    }

    /// Takes in the `count` bytes that were received to where `receive_into` said.
    pub fn take_received(
        self: *Body,
        exchange: *Exchange,
        gpa: std.mem.Allocator,
        scratch: []u8,
        count: usize,
        limits: *const Limits,
    ) TakeError!void {
        if (self.decoder != null or self.storage == .in_place) {
            exchange.received += @intCast(count);
            return self.take_buffered(exchange, gpa, scratch, limits);
        }
        if (self.spills) {
            try self.write_to_file(scratch[0..count], limits);
        } else {
            self.hold(count);
        }
        self.count_taken(count);
    }

    /// Memory of the body's own for bytes that come next; none when they go to the file.
    fn memory_room(self: *Body) []u8 {
        const end = @min(self.memory.len, self.share(self.memory.len));
        if (end <= self.memory_used) self.spills = true;
        return if (self.spills) &.{} else self.memory[self.memory_used..end];
    }

    /// The first `count` bytes of what `memory_room` gave have been written.
    fn hold(self: *Body, count: usize) void {
        self.memory_used += count;
        // Mapped memory takes none before it is written; the other kind is counted as a whole.
        if (self.storage == .mapped) self.count_memory(count);
    }

    fn count_memory(self: *Body, count: usize) void {
        const memory = self.buffer_memory orelse return;
        memory.add(count);
        self.counted += count;
    }

    fn share(self: *const Body, limit: usize) usize {
        return if (self.buffer_memory) |memory| memory.share(limit) else limit;
    }

    fn may_begin(self: *const Body) bool {
        return if (self.buffer_memory) |memory| memory.takes_bodies() else true;
    }

    /// Takes in what is in the exchange's buffer behind the head.
    pub fn take_buffered(
        self: *Body,
        exchange: *Exchange,
        gpa: std.mem.Allocator,
        scratch: []u8,
        limits: *const Limits,
    ) TakeError!void {
        if (self.decoder != null) return self.take_chunked(exchange, gpa, scratch, limits);
        const came = exchange.bytes[self.cursor..exchange.received];
        const count: usize = @intCast(@min(came.len, self.remaining));
        switch (self.storage) {
            .in_place => {
                const start = exchange.head.head_bytes;
                self.memory_used += count;
                self.memory = exchange.bytes[start..][0..self.memory_used];
                self.cursor += @intCast(count);
                exchange.request_end = self.cursor;
            },
            .heap, .mapped => {
                // All that was received belongs to this body, which did not fit in place.
                const room = self.memory_room();
                const to_memory = @min(count, room.len);
                @memcpy(room[0..to_memory], came[0..to_memory]);
                self.hold(to_memory);
                if (to_memory < count) try self.write_to_file(came[to_memory..count], limits);
                exchange.received = self.cursor;
            },
        }
        self.count_taken(count);
    }

    fn count_taken(self: *Body, count: usize) void {
        self.length += count;
        self.remaining -= count;
        self.complete = self.remaining == 0;
    }

    fn take_chunked(
        self: *Body,
        exchange: *Exchange,
        gpa: std.mem.Allocator,
        scratch: []u8,
        limits: *const Limits,
    ) TakeError!void {
        const decoder = &self.decoder.?;
        while (true) {
            const input = exchange.bytes[self.cursor..exchange.received];
            const output = try self.chunked_output(gpa, scratch, limits);
            const progress = try decoder.feed(input, output);
            if (decoder.bytes_announced() > limits.bytes_max) return error.TooLarge;
            self.cursor += @intCast(progress.consumed);
            if (output.ptr == scratch.ptr) {
                try self.write_to_file(output[0..progress.produced], limits);
            } else {
                self.hold(progress.produced);
            }
            self.length += progress.produced;
            if (progress.done) {
                self.complete = true;
                exchange.request_end = self.cursor;
                return;
            }
            if (self.cursor == exchange.received) {
                self.rewind(exchange);
                return;
            }
        }
    }

    /// Where decoded bytes go: memory that grows to its limit, then `scratch` for the file.
    fn chunked_output(
        self: *Body,
        gpa: std.mem.Allocator,
        scratch: []u8,
        limits: *const Limits,
    ) error{OutOfMemory}![]u8 {
        const is_full = self.memory_used == self.memory.len;
        const may_grow = self.memory.len < self.share(limits.memory_bytes_max);
        if (is_full and may_grow and !self.spills) try self.grow(gpa, limits.memory_bytes_max);
        const room = self.memory_room();
        return if (room.len > 0) room else scratch;
    }

    /// A little first, for the length is not known; then all that there may be.
    fn grow(self: *Body, gpa: std.mem.Allocator, bytes_max: usize) error{OutOfMemory}!void {
        if (self.storage == .in_place) {
            self.memory = try gpa.alloc(u8, @min(growing_bytes_first, bytes_max));
            self.storage = .heap;
            self.count_memory(self.memory.len);
            return;
        }
        const larger = try pages.alloc(u8, bytes_max);
        @memcpy(larger[0..self.memory_used], self.memory[0..self.memory_used]);
        self.free_memory(gpa);
        self.memory = larger;
        self.storage = .mapped;
    }

    /// All raw bytes are done with: the next are received right behind the head.
    fn rewind(self: *Body, exchange: *Exchange) void {
        self.cursor = exchange.head.head_bytes;
        exchange.received = self.cursor;
    }

    fn write_to_file(self: *Body, bytes: []const u8, limits: *const Limits) sys.OpenError!void {
        if (self.file == sys.no_fd) self.file = try sys.open_unlinked(limits.temporary_directory);
        try sys.write_all_at(self.file, bytes, self.file_length);
        self.file_length += bytes.len;
    }

    // ---- Reading: the worker -------------------------------------------------------------------

    /// Bytes that can be read without waiting for the client: all that is left when gathered.
    pub fn readable(self: *const Body) u64 {
        return if (self.mode == .gathered) self.length - self.position else 0;
    }

    /// The next `count` bytes where they are, if all of them are gathered in memory; valid as long
    /// as the exchange is. They count as read.
    pub fn take_from_memory(self: *Body, count: usize) ?[]const u8 {
        if (self.mode != .gathered or self.position + count > self.memory_used) return null;
        const start: usize = @intCast(self.position);
        self.position += count;
        return self.memory[start..][0..count];
    }

    /// Reads at least one byte into `destination`; 0 at the end of the body.
    pub fn read(
        self: *Body,
        fd: sys.Fd,
        destination: []u8,
        limits: *const Limits,
        interlude: Interlude,
    ) ReadError!usize {
        if (destination.len == 0) return 0;
        switch (self.mode) {
            .none => return 0,
            .gathered => return self.read_gathered(destination),
            .streamed => {
                if (self.complete) return 0;
                if (self.continue_due) try self.send_continue(fd, limits, interlude);
                const wanted: usize = @intCast(@min(destination.len, self.remaining));
                const count = try receive(fd, destination[0..wanted], limits, interlude);
                self.count_taken(count);
                return count;
            },
        }
    }

    /// Whether reading on takes neither the client's socket nor the temporary file.
    pub fn is_in_memory(self: *const Body) bool {
        return switch (self.mode) {
            .none => true,
            .gathered => self.file == sys.no_fd or self.position == self.length,
            .streamed => self.complete,
        };
    }

    fn read_gathered(self: *Body, destination: []u8) sys.FileError!usize {
        const left = self.length - self.position;
        if (left == 0) return 0;
        const wanted = destination[0..@intCast(@min(destination.len, left))];
        var done: usize = 0;
        if (self.position < self.memory_used) {
            const start: usize = @intCast(self.position);
            done = @min(wanted.len, self.memory_used - start);
            @memcpy(wanted[0..done], self.memory[start..][0..done]);
        }
        if (done < wanted.len) {
            const offset = self.position + done - self.memory_used;
            const count = try sys.read_at(self.file, wanted[done..], offset);
            if (count == 0) return error.Unexpected;
            done += count;
        }
        self.position += done;
        return done;
    }

    fn send_continue(
        self: *Body,
        fd: sys.Fd,
        limits: *const Limits,
        interlude: Interlude,
    ) ReadError!void {
        self.continue_due = false;
        var rest: []const u8 = continue_head;
        while (rest.len > 0) {
            const count = sys.send(fd, rest) catch |err| {
                try overcome(err, fd, .writable, limits, interlude);
                continue;
            };
            rest = rest[count..];
        }
    }

    fn receive(
        fd: sys.Fd,
        destination: []u8,
        limits: *const Limits,
        interlude: Interlude,
    ) ReadError!usize {
        if (is_past_receiving(limits)) return error.TimedOut;
        while (true) {
            const count = sys.recv(fd, destination) catch |err| {
                try overcome(err, fd, .readable, limits, interlude);
                continue;
            };
            return if (count == 0) error.ClientGone else count;
        }
    }

    /// Waits where a second try can succeed; else says what the failure means to the application.
    fn overcome(
        err: (sys.ReadError || sys.WriteError),
        fd: sys.Fd,
        what: sys.WaitFor,
        limits: *const Limits,
        interlude: Interlude,
    ) ReadError!void {
        return switch (err) {
            error.WouldBlock => if (!wait(fd, what, limits, interlude)) {
                return error.TimedOut;
            },
            error.OutOfMemory => error.OutOfMemory,
            error.ConnectionGone, error.Unexpected => error.ClientGone,
        };
    }

    fn wait(
        fd: sys.Fd,
        what: sys.WaitFor,
        limits: *const Limits,
        interlude: Interlude,
    ) bool {
        const by_ms = limits.receive_by_ms orelse {
            return interlude.wait_ready(fd, what, limits.timeout_ms);
        };
        const end_ms = sys.monotonic_ms() +| limits.timeout_ms;
        while (true) {
            const left_ms = @min(end_ms, by_ms.load(.acquire)) -| sys.monotonic_ms();
            if (interlude.wait_ready(fd, what, @min(left_ms, look_ms))) return true;
            if (left_ms <= look_ms) return false;
        }
    }

    /// Bytes that keep coming do not make a drain any longer.
    fn is_past_receiving(limits: *const Limits) bool {
        const by_ms = (limits.receive_by_ms orelse return false).load(.acquire);
        return by_ms != std.math.maxInt(u64) and sys.monotonic_ms() >= by_ms;
    }
};

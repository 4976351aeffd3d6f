//! Takes log lines from everybody and writes them in batches, on a thread of its own.
//!
//! Whoever has a line puts it into a bounded buffer under a mutex that is held for the copy alone,
//! and goes on. Once a tenth of a second, or when a buffer is half full, the thread exchanges the
//! buffers and writes. What nobody takes in time is dropped, whole lines, and counted: a pipe that
//! is not read, a terminal that is stopped or a full disk never holds a request up. The thread
//! itself waits without end for nothing but a file's disk, so that it can always be told to stop.
//! GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");
const pages = @import("pages.zig");
const log_text = @import("log_text.zig");
const Futex = std.Thread.Futex;

pub const Where = enum { access, errors };

/// Lines that a flood of requests could make, each kind with a limit of its own.
pub const Flood = enum {
    refused,
    shed,
    slow,
    pause,

    fn lines_per_second(self: Flood) u32 {
        return switch (self) {
            .refused, .shed => 10,
            .slow => 50,
            .pause => 1,
        };
    }

    fn describe(self: Flood) []const u8 {
        return switch (self) {
            .refused => "more requests refused",
            .shed => "more requests refused for want of something",
            .slow => "more slow requests",
            .pause => "more pauses of accepting",
        };
    }
};

pub const Options = struct {
    /// "stdout", "stderr" or a path; empty for no access log.
    access: []const u8 = "",
    quoting: log_text.Quoting = .text,
};

/// A line waits no longer than that, if it can be written.
const batch_ns = 100 * std.time.ns_per_ms;
/// How often to look whether a pipe that was full is read again.
const blocked_ns = 20 * std.time.ns_per_ms;
/// How long what is left may take at the end.
pub const close_ms = 1000;
const buffer_bytes = 512 * 1024;
/// A pipe that is ready takes so many bytes at once (PIPE_BUF on Linux); a file takes all.
const pipe_bytes = 4096;

const Channel = struct {
    fd: sys.Fd = sys.no_fd,
    /// Where there is something to open anew.
    path: ?[:0]const u8 = null,
    is_file: bool = false,
    // Under the mutex: what is put in now, and how much.
    filling: []u8 = &.{},
    filled: usize = 0,
    // The thread's: what is written out now, and what of it is left.
    draining: []u8 = &.{},
    left: []const u8 = "",
    /// The last byte written was none that ends a line.
    is_torn: bool = false,

    fn is_open(self: *const Channel) bool {
        return self.fd != sys.no_fd;
    }
};

const Limiter = struct { second: u64 = 0, count: u32 = 0, suppressed: u64 = 0 };

pub const InitError = error{ OutOfMemory, CannotOpen };

pub const LogWriter = struct {
    gpa: std.mem.Allocator,
    quoting: log_text.Quoting,
    mutex: std.Thread.Mutex = .{},
    channels: std.EnumArray(Where, Channel),
    floods: std.EnumArray(Flood, Limiter) = .initFill(.{}),
    /// Changes when the thread shall look at what it has to do; what it sleeps on.
    signal: std.atomic.Value(u32) = .init(0),
    // Under the mutex.
    hurry: bool = false,
    reopening: bool = false,
    closing: bool = false,
    /// Stored under the mutex, read anywhere.
    dropped: std.atomic.Value(u64) = .init(0),
    ended: std.Thread.ResetEvent = .{},
    thread: ?std.Thread = null,
    stamp: log_text.Stamp = .{},

    /// In place. Opens what is to be opened; `start` is for the thread.
    pub fn init(self: *LogWriter, gpa: std.mem.Allocator, options: Options) InitError!void {
        self.* = .{ .gpa = gpa, .quoting = options.quoting, .channels = .initFill(.{}) };
        errdefer self.deinit();
        try self.open(.errors, "stderr");
        if (options.access.len > 0) try self.open(.access, options.access);
    }

    fn open(self: *LogWriter, where: Where, name: []const u8) InitError!void {
        const channel = self.channels.getPtr(where);
        channel.filling = try pages.alloc(u8, buffer_bytes);
        channel.draining = try pages.alloc(u8, buffer_bytes);
        if (std.mem.eql(u8, name, "stdout")) {
            // Copies: an application that closes its own must not make ours something else.
            channel.fd = sys.duplicate(1) orelse return;
        } else if (std.mem.eql(u8, name, "stderr")) {
            channel.fd = sys.duplicate(2) orelse return;
        } else {
            channel.path = try self.gpa.dupeZ(u8, name);
            channel.fd = sys.open_log(channel.path.?) orelse return error.CannotOpen;
        }
        channel.is_file = sys.is_seekable(channel.fd);
    }

    pub fn start(self: *LogWriter) std.Thread.SpawnError!void {
        const config: std.Thread.SpawnConfig = .{ .stack_size = 256 * 1024 };
        self.thread = try std.Thread.spawn(config, run, .{self});
    }

    /// Ends the thread first, when it has been started.
    pub fn deinit(self: *LogWriter) void {
        _ = self.close(close_ms);
        if (self.thread) |thread| thread.join();
        for (&self.channels.values) |*channel| {
            if (channel.is_open()) sys.close(channel.fd);
            if (channel.path) |path| self.gpa.free(path);
            if (channel.filling.len > 0) pages.free(channel.filling);
            if (channel.draining.len > 0) pages.free(channel.draining);
        }
    }

    // ---- Any thread ----------------------------------------------------------------------------

    pub fn has_access_log(self: *const LogWriter) bool {
        return self.channels.getPtrConst(.access).filling.len > 0;
    }

    /// Puts a whole line, its end included.
    pub fn put(self: *LogWriter, where: Where, line: []const u8) void {
        self.mutex.lock();
        const channel = self.channels.getPtr(where);
        const before = channel.filled;
        if (self.closing or channel.filling.len - before < line.len) {
            self.count_dropped(1);
            self.mutex.unlock();
            return;
        }
        @memcpy(channel.filling[before..][0..line.len], line);
        channel.filled = before + line.len;
        const half = buffer_bytes / 2;
        const is_half_full = before < half and channel.filled >= half;
        if (is_half_full) self.hurry = true;
        self.mutex.unlock();
        if (before == 0 or is_half_full) self.wake();
    }

    /// Puts a record of the launcher's, of one line or several, which is written at once: what is
    /// rare is most often looked for.
    pub fn put_now(self: *LogWriter, record: []const u8) void {
        self.put(.errors, record);
        self.mutex.lock();
        self.hurry = true;
        self.mutex.unlock();
        self.wake();
    }

    /// Whether one more line of this kind may be put in this second. What may not is told of
    /// later, in one line.
    pub fn admit(self: *LogWriter, flood: Flood, now_ms: u64) bool {
        self.mutex.lock();
        const limiter = self.floods.getPtr(flood);
        const second = now_ms / std.time.ms_per_s;
        if (limiter.second != second and limiter.suppressed == 0) {
            limiter.* = .{ .second = second };
        }
        const is_admitted = limiter.second == second and limiter.count < flood.lines_per_second();
        if (is_admitted) limiter.count += 1 else limiter.suppressed += 1;
        const is_first = limiter.suppressed == 1 and !is_admitted;
        self.mutex.unlock();
        if (is_first) self.wake();
        return is_admitted;
    }

    /// Opens files anew, so that those that were moved away get no more lines.
    pub fn reopen(self: *LogWriter) void {
        self.mutex.lock();
        self.reopening = true;
        self.hurry = true;
        self.mutex.unlock();
        self.wake();
    }

    /// Writes out what is there and takes no more lines. False when that took longer than allowed.
    pub fn close(self: *LogWriter, timeout_ms: u64) bool {
        self.mutex.lock();
        self.closing = true;
        self.hurry = true;
        self.mutex.unlock();
        if (self.thread == null) return true;
        self.wake();
        self.ended.timedWait(timeout_ms * std.time.ns_per_ms) catch return false;
        return true;
    }

    fn wake(self: *LogWriter) void {
        _ = self.signal.fetchAdd(1, .release);
        Futex.wake(&self.signal, 1);
    }

    /// Under the mutex.
    fn count_dropped(self: *LogWriter, lines: u64) void {
        self.dropped.store(self.dropped.load(.monotonic) + lines, .monotonic);
    }

    // ---- The thread ----------------------------------------------------------------------------

    fn run(self: *LogWriter) void {
        defer self.ended.set();
        var deadline_ms: ?u64 = null;
        while (true) {
            const seen = self.signal.load(.acquire);
            const work = self.look();
            switch (work) {
                .nothing => {
                    Futex.wait(&self.signal, seen);
                    continue;
                },
                // More lines may come, to be written in one go.
                .lines => self.pause(batch_ns),
                .hurry => {},
            }
            // Before the work, so that whatever was put in before the end is seen to.
            self.mutex.lock();
            const closing = self.closing;
            self.mutex.unlock();
            const is_blocked = self.work_off();
            if (closing) {
                const now_ms = sys.monotonic_ms();
                if (deadline_ms == null) deadline_ms = now_ms + close_ms * 3 / 4;
                if (!is_blocked or now_ms >= deadline_ms.?) return self.drop_all();
            }
            if (is_blocked) std.Thread.sleep(blocked_ns);
        }
    }

    const Work = enum { nothing, lines, hurry };

    fn look(self: *LogWriter) Work {
        self.mutex.lock();
        defer self.mutex.unlock();
        if (self.hurry) {
            self.hurry = false;
            return .hurry;
        }
        for (&self.channels.values) |*channel| {
            if (channel.left.len > 0) return .hurry;
            if (channel.filled > 0) return .lines;
        }
        for (&self.floods.values) |*limiter| if (limiter.suppressed > 0) return .lines;
        return .nothing;
    }

    /// Waits, but not while there is a hurry.
    fn pause(self: *LogWriter, duration_ns: u64) void {
        const start_ns = sys.monotonic_ns();
        while (true) {
            const seen = self.signal.load(.acquire);
            self.mutex.lock();
            const hurry = self.hurry;
            self.mutex.unlock();
            const passed_ns = sys.monotonic_ns() -| start_ns;
            if (hurry or passed_ns >= duration_ns) return;
            Futex.timedWait(&self.signal, seen, duration_ns - passed_ns) catch return;
        }
    }

    /// Writes what can be written now. True when something is left that could not.
    fn work_off(self: *LogWriter) bool {
        self.tell_of_floods();
        var is_blocked = false;
        for (&self.channels.values) |*channel| {
            if (!self.write_out(channel)) is_blocked = true;
        }
        self.mutex.lock();
        const reopening = self.reopening;
        self.reopening = false;
        self.mutex.unlock();
        if (reopening) self.open_anew();
        return is_blocked;
    }

    /// False when the reader takes no more for now.
    fn write_out(self: *LogWriter, channel: *Channel) bool {
        while (true) {
            if (!self.write_left(channel)) return false;
            self.mutex.lock();
            defer self.mutex.unlock();
            if (channel.filled == 0) return true;
            const full = channel.filling[0..channel.filled];
            channel.filling = channel.draining;
            channel.filled = 0;
            channel.draining = full.ptr[0..buffer_bytes];
            channel.left = full;
        }
    }

    pub fn write_left(self: *LogWriter, channel: *Channel) bool {
        if (channel.left.len == 0) return true;
        if (!channel.is_open()) return self.drop_left(channel);
        while (channel.left.len > 0) {
            // A blocking pipe has to be asked first, and then takes no more than it has room for.
            if (!channel.is_file and !sys.wait_ready(channel.fd, .writable, 0)) return false;
            // The part of a line that a failed write has left shall not spoil the next one.
            const mends = channel.is_torn and !self.continues(channel);
            const bytes = if (mends) "\n" else self.next_bytes(channel);
            const count = sys.write_log(channel.fd, bytes) catch |err| switch (err) {
                error.WouldBlock => return false,
                error.Failed => return self.drop_left(channel),
            };
            if (count == 0) return self.drop_left(channel);
            channel.is_torn = bytes[count - 1] != '\n';
            if (!mends) channel.left = channel.left[count..];
        }
        return true;
    }

    /// Whether what is left begins in the middle of the line that was written last.
    fn continues(_: *const LogWriter, channel: *const Channel) bool {
        return @intFromPtr(channel.left.ptr) != @intFromPtr(channel.draining.ptr);
    }

    /// As many whole lines as a pipe takes at once, if one fits.
    fn next_bytes(_: *const LogWriter, channel: *const Channel) []const u8 {
        const left = channel.left;
        if (channel.is_file or left.len <= pipe_bytes) return left;
        const piece = left[0..pipe_bytes];
        const end = std.mem.lastIndexOfScalar(u8, piece, '\n') orelse return piece;
        return piece[0 .. end + 1];
    }

    /// What is left can not be written: no space, or nobody there. The lines count as dropped.
    fn drop_left(self: *LogWriter, channel: *Channel) bool {
        const lines = std.mem.count(u8, channel.left, "\n");
        channel.left = "";
        self.mutex.lock();
        defer self.mutex.unlock();
        self.count_dropped(lines);
        return true;
    }

    fn drop_all(self: *LogWriter) void {
        for (&self.channels.values) |*channel| {
            if (channel.left.len > 0) _ = self.drop_left(channel);
            self.mutex.lock();
            defer self.mutex.unlock();
            self.count_dropped(std.mem.count(u8, channel.filling[0..channel.filled], "\n"));
            channel.filled = 0;
        }
    }

    fn open_anew(self: *LogWriter) void {
        for (&self.channels.values) |*channel| {
            const path = channel.path orelse continue;
            const fd = sys.open_log(path) orelse {
                self.say(.@"error", "the access log cannot be opened anew; the old file is kept");
                continue;
            };
            sys.close(channel.fd);
            channel.fd = fd;
            channel.is_file = sys.is_seekable(fd);
            channel.is_torn = false;
        }
    }

    /// One line about each kind of which lines were held back in a second that is over.
    fn tell_of_floods(self: *LogWriter) void {
        const now_ms = sys.realtime_ms();
        for (std.enums.values(Flood)) |flood| {
            self.mutex.lock();
            const limiter = self.floods.getPtr(flood);
            const suppressed = limiter.suppressed;
            const is_over = self.closing or limiter.second != now_ms / std.time.ms_per_s;
            if (is_over) limiter.* = .{};
            self.mutex.unlock();
            if (!is_over or suppressed == 0) continue;
            var text: [100]u8 = undefined;
            self.say(.warning, std.fmt.bufPrint(&text, "and {d} {s}, not logged one by one", .{
                suppressed,
                flood.describe(),
            }) catch continue);
        }
    }

    fn say(self: *LogWriter, level: log_text.Level, message: []const u8) void {
        var buffer: [300]u8 = undefined;
        var line: log_text.Line = .{ .buffer = &buffer };
        log_text.begin_record(&line, &self.stamp, sys.realtime_ms(), self.quoting, level);
        line.put(message);
        line.put(if (self.quoting == .json) "\"}\n" else "\n");
        self.mutex.lock();
        defer self.mutex.unlock();
        const channel = self.channels.getPtr(.errors);
        if (channel.filling.len - channel.filled < line.len) return self.count_dropped(1);
        @memcpy(channel.filling[channel.filled..][0..line.len], line.written());
        channel.filled += line.len;
    }
};

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

    fn lines_per_second(self: Flood) u32 {
        return switch (self) {
            .refused, .shed => 10,
            .slow => 50,
        };
    }

    fn describe(self: Flood) []const u8 {
        return switch (self) {
            .refused => "more requests refused",
            .shed => "more requests refused for want of something",
            .slow => "more slow requests",
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

    fn write_left(self: *LogWriter, channel: *Channel) bool {
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

const testing = std.testing;

/// A writer whose access log is the writing end of a socket pair, or any other descriptor.
const Fixture = struct {
    writer: LogWriter = undefined,
    reader: sys.Fd = sys.no_fd,

    /// In place. `path` of an access log, or none for a socket pair.
    fn start(self: *Fixture, path: ?[]const u8) !void {
        const name = path orelse "stdout";
        try self.writer.init(testing.allocator, .{ .access = name });
        const channels = &self.writer.channels;
        // Not the test runner's own.
        sys.close(channels.getPtr(.errors).fd);
        const pair = try sys.socket_pair();
        channels.getPtr(.errors).fd = pair[1];
        sys.close(pair[0]);
        if (path == null) {
            sys.close(channels.getPtr(.access).fd);
            const own = try sys.socket_pair();
            self.reader = own[0];
            channels.getPtr(.access).fd = own[1];
            channels.getPtr(.access).is_file = false;
        }
        try self.writer.start();
    }

    fn deinit(self: *Fixture) void {
        self.writer.deinit();
        if (self.reader != sys.no_fd) sys.close(self.reader);
    }

    /// All that comes until nothing has for a while.
    fn read(self: *Fixture, all: *std.ArrayList(u8), quiet_ms: u64) !void {
        var buffer: [64 * 1024]u8 = undefined;
        while (sys.wait_ready(self.reader, .readable, quiet_ms)) {
            const count = try sys.recv(self.reader, &buffer);
            if (count == 0) return;
            try all.appendSlice(testing.allocator, buffer[0..count]);
        }
    }

    fn dropped(self: *const Fixture) u64 {
        return self.writer.dropped.load(.monotonic);
    }
};

fn expect_whole_lines(text: []const u8, line: []const u8) !void {
    var lines = std.mem.splitScalar(u8, text, '\n');
    while (lines.next()) |one| {
        if (one.len == 0 and lines.peek() == null) return;
        try testing.expectEqualStrings(line[0 .. line.len - 1], one);
    }
    return error.NoEnd;
}

const test_line = "a line of a log, as long as lines are, or even a little longer than that\n";

test "log writer: lines come in order, in batches, and soon" {
    var fixture: Fixture = .{};
    try fixture.start(null);
    defer fixture.deinit();
    const start_ms = sys.monotonic_ms();
    for (0..1000) |number| {
        var storage: [20]u8 = undefined;
        fixture.writer.put(.access, try std.fmt.bufPrint(&storage, "line {d}\n", .{number}));
    }
    var all: std.ArrayList(u8) = .empty;
    defer all.deinit(testing.allocator);
    while (std.mem.count(u8, all.items, "\n") < 1000) try fixture.read(&all, 1);
    try testing.expect(sys.monotonic_ms() - start_ms < 2000);
    var lines = std.mem.splitScalar(u8, all.items, '\n');
    for (0..1000) |number| {
        var storage: [20]u8 = undefined;
        const expected = try std.fmt.bufPrint(&storage, "line {d}", .{number});
        try testing.expectEqualStrings(expected, lines.next().?);
    }
    try testing.expectEqual(0, fixture.dropped());
}

test "log writer: a reader that stops loses lines and holds nobody up" {
    var fixture: Fixture = .{};
    try fixture.start(null);
    defer fixture.deinit();
    const total = 60_000; // four megabytes: more than socket and buffers hold
    const start_ms = sys.monotonic_ms();
    for (0..total) |_| fixture.writer.put(.access, test_line);
    try testing.expect(sys.monotonic_ms() - start_ms < 2000);
    try testing.expect(fixture.dropped() > 0);
    var all: std.ArrayList(u8) = .empty;
    defer all.deinit(testing.allocator);
    try fixture.read(&all, 500);
    try expect_whole_lines(all.items, test_line);
    const seen = std.mem.count(u8, all.items, "\n");
    try testing.expectEqual(total, seen + fixture.dropped());
    // It goes on.
    fixture.writer.put(.access, test_line);
    all.clearRetainingCapacity();
    try fixture.read(&all, 500);
    try testing.expectEqualStrings(test_line, all.items);
}

test "log writer: the end writes what is there, waits not for ever, and counts the rest" {
    var fixture: Fixture = .{};
    try fixture.start(null);
    defer fixture.deinit();
    for (0..100) |_| fixture.writer.put(.access, test_line);
    try testing.expect(fixture.writer.close(2000));
    var all: std.ArrayList(u8) = .empty;
    defer all.deinit(testing.allocator);
    try fixture.read(&all, 50);
    try testing.expectEqual(100, std.mem.count(u8, all.items, "\n"));
    fixture.writer.put(.access, test_line);
    try testing.expectEqual(1, fixture.dropped());

    var blocked: Fixture = .{};
    try blocked.start(null);
    defer blocked.deinit();
    for (0..20_000) |_| blocked.writer.put(.access, test_line);
    const start_ms = sys.monotonic_ms();
    _ = blocked.writer.close(3000);
    try testing.expect(sys.monotonic_ms() - start_ms < 2000);
    try blocked.read(&all, 50);
    const seen = std.mem.count(u8, all.items, "\n") - 100;
    try testing.expectEqual(20_000, seen + blocked.dropped());
}

test "log writer: nobody there" {
    var fixture: Fixture = .{};
    try fixture.start(null);
    defer fixture.deinit();
    sys.close(fixture.reader);
    fixture.reader = sys.no_fd;
    for (0..10) |_| fixture.writer.put(.access, test_line);
    for (0..3000) |_| {
        if (fixture.dropped() == 10) return;
        sys.sleep_ms(1);
    }
    try testing.expectEqual(10, fixture.dropped());
}

fn wait_for_file(directory: std.fs.Dir, name: []const u8, expected: []const u8) !void {
    var buffer: [1000]u8 = undefined;
    for (0..3000) |_| {
        const text = directory.readFile(name, &buffer) catch "";
        if (std.mem.eql(u8, text, expected)) return;
        sys.sleep_ms(1);
    }
    try testing.expectEqualStrings(expected, try directory.readFile(name, &buffer));
}

test "log writer: a file that was moved away gets what was before, the new one the rest" {
    var folder = testing.tmpDir(.{});
    defer folder.cleanup();
    var storage: [std.fs.max_path_bytes]u8 = undefined;
    const path = try folder.dir.realpath(".", &storage);
    var name: [std.fs.max_path_bytes]u8 = undefined;
    var fixture: Fixture = .{};
    try fixture.start(try std.fmt.bufPrint(&name, "{s}/access.log", .{path}));
    defer fixture.deinit();
    fixture.writer.put(.access, "one\n");
    try wait_for_file(folder.dir, "access.log", "one\n");
    fixture.writer.put(.access, "two\n");
    try folder.dir.rename("access.log", "access.log.1");
    fixture.writer.reopen();
    try wait_for_file(folder.dir, "access.log", "");
    try wait_for_file(folder.dir, "access.log.1", "one\ntwo\n");
    fixture.writer.put(.access, "three\n");
    try wait_for_file(folder.dir, "access.log", "three\n");
    // Where it cannot be opened the old one is kept.
    try folder.dir.rename("access.log", "access.log.2");
    try folder.dir.makeDir("access.log");
    fixture.writer.reopen();
    fixture.writer.put(.access, "four\n");
    try wait_for_file(folder.dir, "access.log.2", "three\nfour\n");
}

test "log writer: a full disk loses lines, and none after it is spoiled" {
    if (!sys.is_linux) return;
    var folder = testing.tmpDir(.{});
    defer folder.cleanup();
    var fixture: Fixture = .{};
    try fixture.start("/dev/full");
    defer fixture.deinit();
    fixture.writer.put(.access, test_line);
    for (0..3000) |_| {
        if (fixture.dropped() == 1) break;
        sys.sleep_ms(1);
    }
    try testing.expectEqual(1, fixture.dropped());
    try testing.expect(fixture.writer.close(2000));
    // As after a write that was cut in a line.
    const file = try folder.dir.createFile("log", .{});
    const channel = fixture.writer.channels.getPtr(.access);
    const before = channel.fd;
    channel.fd = file.handle;
    channel.is_torn = true;
    channel.left = channel.draining[0..4];
    @memcpy(channel.draining[0..4], "new\n");
    try testing.expect(fixture.writer.write_left(channel));
    channel.fd = before;
    file.close();
    try wait_for_file(folder.dir, "log", "\nnew\n");
}

test "log writer: a flood is told of in one line" {
    var fixture: Fixture = .{};
    try fixture.start(null);
    defer fixture.deinit();
    std.mem.swap(
        sys.Fd,
        &fixture.writer.channels.getPtr(.errors).fd,
        &fixture.writer.channels.getPtr(.access).fd,
    );
    const now_ms = sys.realtime_ms();
    var admitted: u32 = 0;
    for (0..500) |_| {
        if (fixture.writer.admit(.refused, now_ms)) admitted += 1;
    }
    try testing.expectEqual(10, admitted);
    try testing.expect(fixture.writer.admit(.slow, now_ms));
    var all: std.ArrayList(u8) = .empty;
    defer all.deinit(testing.allocator);
    for (0..40) |_| {
        if (all.items.len == 0) try fixture.read(&all, 100);
    }
    const message = " warning and 490 more requests refused, not logged one by one\n";
    try testing.expect(std.mem.endsWith(u8, all.items, message));
    try testing.expect(fixture.writer.admit(.refused, now_ms + 2000));
}

test "log writer: many threads, whole lines" {
    var fixture: Fixture = .{};
    try fixture.start(null);
    defer fixture.deinit();
    var threads: [3]std.Thread = undefined;
    for (&threads) |*thread| thread.* = try std.Thread.spawn(.{}, struct {
        fn work(writer: *LogWriter) void {
            for (0..1000) |_| writer.put(.access, test_line);
        }
    }.work, .{&fixture.writer});
    var all: std.ArrayList(u8) = .empty;
    defer all.deinit(testing.allocator);
    for (0..200) |_| {
        if (std.mem.count(u8, all.items, "\n") == 3000) break;
        try fixture.read(&all, 20);
    }
    for (threads) |thread| thread.join();
    try testing.expectEqual(3000, std.mem.count(u8, all.items, "\n"));
    try expect_whole_lines(all.items, test_line);
}

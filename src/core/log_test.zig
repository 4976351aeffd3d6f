//! The log's writer against real pipes and files: readers that stop or leave, disks that are full,
//! files that are moved away; and the addresses in its lines.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const log_writer = @import("log_writer.zig");
const patience_ms = @import("server_fixture.zig").patience_ms;
const LogWriter = log_writer.LogWriter;
const Line = @import("log_text.zig").Line;

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
    for (0..patience_ms) |_| {
        if (std.mem.count(u8, all.items, "\n") >= 1000) break;
        try fixture.read(&all, 1);
    }
    try testing.expect(sys.monotonic_ms() - start_ms < patience_ms);
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
    try testing.expect(sys.monotonic_ms() - start_ms < patience_ms);
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
    try testing.expect(fixture.writer.close(patience_ms));
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
    _ = blocked.writer.close(2 * patience_ms);
    try testing.expect(sys.monotonic_ms() - start_ms < patience_ms);
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
    for (0..patience_ms) |_| {
        if (fixture.dropped() == 10) return;
        sys.sleep_ms(1);
    }
    try testing.expectEqual(10, fixture.dropped());
}

fn wait_for_file(directory: std.fs.Dir, name: []const u8, expected: []const u8) !void {
    var buffer: [1000]u8 = undefined;
    for (0..patience_ms) |_| {
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
    for (0..patience_ms) |_| {
        if (fixture.dropped() == 1) break;
        sys.sleep_ms(1);
    }
    try testing.expectEqual(1, fixture.dropped());
    try testing.expect(fixture.writer.close(patience_ms));
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

test "log text: addresses" {
    var buffer: [100]u8 = undefined;
    const Net = std.net.Address;
    for ([_]struct { []const u8, []const u8 }{
        .{ "127.0.0.1", "127.0.0.1" },
        .{ "255.255.255.255", "255.255.255.255" },
        .{ "0.0.0.0", "0.0.0.0" },
        .{ "2001:db8::1", "2001:db8::1" },
    }) |case| {
        const net = try Net.parseIp(case[0], 80);
        var address = std.mem.zeroes(sys.Address);
        if (net.any.family == std.c.AF.INET) {
            address.in4 = @bitCast(net.in.sa);
        } else {
            address.in6 = @bitCast(net.in6.sa);
        }
        var line: Line = .{ .buffer = &buffer };
        line.put_address(&address);
        try testing.expectEqualStrings(case[1], line.written());
    }
    var line: Line = .{ .buffer = &buffer };
    line.put_address(&std.mem.zeroes(sys.Address));
    try testing.expectEqualStrings("unix:", line.written());
}

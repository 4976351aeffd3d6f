//! The reply on a socket pair, where the whole server does not easily get: what is kept, pinned,
//! cut or refused while the client takes nothing, and how each framing ends.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const exchange_module = @import("exchange.zig");
const reply_module = @import("reply.zig");
const request_head = @import("request_head.zig");
const fixture_module = @import("server_fixture.zig");
const interlude = fixture_module.free_interlude;
const pattern_byte = fixture_module.pattern_byte;
const fill_pattern = fixture_module.fill_pattern;
const FilePart = @import("file_part.zig").FilePart;
const Connection = @import("connection.zig").Connection;
const Reply = reply_module.Reply;

const gpa = testing.allocator;

const Fixture = struct {
    pool: exchange_module.Pool = .{ .gpa = gpa, .field_lines_max = 16 },
    draining: std.atomic.Value(bool) = .init(false),
    connection: Connection = .{ .index = 0 },
    exchange: *exchange_module.Exchange = undefined,
    client: sys.Fd = sys.no_fd,
    reply: Reply = undefined,

    /// In place: the reply points into it.
    fn begin(self: *Fixture, request: []const u8) !void {
        const pair = try sys.socket_pair();
        self.connection.fd = pair[0];
        self.client = pair[1];
        self.exchange = try self.pool.acquire();
        @memcpy(self.exchange.bytes[0..request.len], request);
        self.exchange.received = @intCast(request.len);
        const limits: request_head.Limits = .{
            .request_line_bytes_max = 1000,
            .head_bytes_max = 10_000,
            .field_lines_max = 16,
        };
        try testing.expect(try self.exchange.head.parse(request, limits));
        self.reply = .init(gpa, .{
            .memory_bytes_max = 100_000,
            .timeout_ms = 50,
        }, interlude, &self.draining);
        self.reply.begin(&self.connection, self.exchange, true);
    }

    fn deinit(self: *Fixture) void {
        sys.close(self.connection.fd);
        if (self.client != sys.no_fd) sys.close(self.client);
        self.pool.release(self.exchange);
        self.pool.deinit();
        self.reply.deinit();
    }

    /// Until the socket takes no more. Returns how many bytes went.
    fn fill_socket(self: *Fixture) usize {
        const bytes: [4096]u8 = @splat('.');
        var total: usize = 0;
        while (true) total += sys.send(self.connection.fd, &bytes) catch return total;
    }

    fn flush(self: *Fixture) !bool {
        const output = &self.exchange.output;
        while (!output.is_empty()) {
            _ = output.send(gpa, self.connection.fd, 10_000) catch |err| {
                if (err == error.WouldBlock) return false;
                return err;
            };
        }
        return true;
    }

    /// All that the client gets, as the poller would send it.
    fn take(self: *Fixture) !std.ArrayList(u8) {
        var all: std.ArrayList(u8) = .empty;
        errdefer all.deinit(gpa);
        var buffer: [64 * 1024]u8 = undefined;
        while (true) {
            const is_flushed = try self.flush();
            const count = sys.recv(self.client, &buffer) catch |err| switch (err) {
                error.WouldBlock => if (is_flushed) return all else continue,
                else => return err,
            };
            if (count == 0) return all;
            try all.appendSlice(gpa, buffer[0..count]);
        }
    }

    /// The client gets this behind its first `skipped` bytes.
    fn expect_body(self: *Fixture, skipped: usize, expected: []const u8) !void {
        var all = try self.take();
        defer all.deinit(gpa);
        const rest = all.items[skipped..];
        const end = std.mem.indexOf(u8, rest, "\r\n\r\n") orelse return error.NoHead;
        try testing.expectEqualStrings(expected, rest[end + 4 ..]);
    }
};

const get_1_1 = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const get_1_0 = "GET / HTTP/1.0\r\n\r\n";
const head_1_1 = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";

test "reply: each framing and how it ends" {
    const cases = [_]struct { []const u8, ?u64, []const u8, bool }{
        .{ get_1_1, 6, "abcdef", false },
        .{ get_1_1, null, "3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n", false },
        .{ get_1_0, null, "abcdef", true },
        .{ head_1_1, 6, "", false },
    };
    for (cases) |case| {
        var fixture: Fixture = .{};
        try fixture.begin(case[0]);
        defer fixture.deinit();
        const reply = &fixture.reply;
        try reply.start("200 OK");
        try reply.write("abc", case[1]);
        try reply.write("", case[1]);
        try testing.expectEqual(.more, try reply.offer("def", case[1]));
        try reply.finish();
        try testing.expectEqual(case[3], reply.progress.must_close);
        try fixture.expect_body(0, case[2]);
    }
}

test "reply: a head may be begun anew until it is sent" {
    var fixture: Fixture = .{};
    try fixture.begin(get_1_1);
    defer fixture.deinit();
    const reply = &fixture.reply;
    try reply.start("200 OK");
    try reply.head.add("Content-Length", "7");
    try testing.expectError(error.BadStatus, reply.start("20"));
    try testing.expect(!reply.progress.started);
    try reply.start("404 Not Found");
    try reply.write("gone", 4);
    try reply.finish();
    var all = try fixture.take();
    defer all.deinit(gpa);
    try testing.expect(std.mem.startsWith(u8, all.items, "HTTP/1.1 404 Not Found\r\n"));
    try testing.expect(std.mem.indexOf(u8, all.items, "Content-Length: 7") == null);
    try testing.expect(std.mem.endsWith(u8, all.items, "\r\n\r\ngone"));
}

test "reply: less and more than the application's own Content-Length" {
    for ([_]usize{ 1, 9000, 40_000 }) |length| {
        for ([_]bool{ false, true }) |is_full| for ([_]bool{ false, true }) |is_second| {
            var fixture: Fixture = .{};
            try fixture.begin(get_1_1);
            defer fixture.deinit();
            const reply = &fixture.reply;
            const piece = try gpa.alloc(u8, length + 1);
            @memset(piece, 'x');
            const skipped = if (is_full) fixture.fill_socket() else 0;
            var digits: [16]u8 = undefined;
            try reply.start("200 OK");
            const first: []const u8 = if (is_second) "y" else "";
            const whole = length + first.len;
            const text = try std.fmt.bufPrint(&digits, "{d}", .{whole});
            try reply.head.add("Content-Length", text);
            if (is_second) _ = try reply.offer(first, null);
            defer gpa.free(piece);
            if (reply.offer(piece, null)) |flow| {
                // Borrowed until it is sent; the producer hears of it when it goes on.
                try testing.expectEqual(.full, flow);
                try testing.expect(reply.progress.too_long);
                const pinned = &fixture.exchange.output.pinned;
                try testing.expect(pinned.len > 0 and pinned.len <= length);
                pinned.* = "";
                continue;
            } else |err| try testing.expectEqual(error.BodyTooLong, err);
            try testing.expect(reply.progress.must_close);
            try testing.expectEqual(0, fixture.exchange.output.pinned.len);
            if (reply.progress.broken) continue;
            const expected = try gpa.alloc(u8, whole);
            defer gpa.free(expected);
            @memset(expected, 'x');
            @memcpy(expected[0..first.len], first);
            try fixture.expect_body(skipped, expected);
        };
    }
    var fixture: Fixture = .{};
    try fixture.begin(get_1_1);
    defer fixture.deinit();
    try fixture.reply.start("200 OK");
    try fixture.reply.head.add("Content-Length", "4");
    try fixture.reply.write("abc", null);
    try testing.expectError(error.BodyTooShort, fixture.reply.finish());
    try testing.expect(fixture.reply.progress.must_close);
}

test "reply: offered pieces are kept when small, pinned when large, and come in order" {
    const sizes = [_]usize{ 1, 100, 16_383, 16_384, 70_000 };
    for ([_]?u64{ null, 1_000_000 }) |length| for (sizes) |size| {
        var fixture: Fixture = .{};
        try fixture.begin(get_1_1);
        defer fixture.deinit();
        const reply = &fixture.reply;
        var expected: std.ArrayList(u8) = .empty;
        defer expected.deinit(gpa);
        const skipped = fixture.fill_socket();
        try reply.start("200 OK");
        if (length != null) try reply.head.add("Content-Length", "1000000");
        const piece = try gpa.alloc(u8, size);
        defer gpa.free(piece);
        var flow: reply_module.Flow = .more;
        for (0..3) |round| {
            if (flow == .full) break;
            @memset(piece, 'a' + @as(u8, @intCast(round)));
            flow = try reply.offer(piece, null);
            if (length == null) try expected.print(gpa, "{x}\r\n", .{size});
            try expected.appendSlice(gpa, piece);
            if (length == null) try expected.appendSlice(gpa, "\r\n");
        }
        try testing.expectEqual(size >= 16_384, flow == .full);
        try testing.expectEqual(size >= 16_384, fixture.exchange.output.pinned.len > 0);
        try fixture.expect_body(skipped, expected.items);
        try testing.expect(fixture.exchange.output.is_empty());
    };
}

test "reply: many small pieces stop at the limit of memory" {
    var fixture: Fixture = .{};
    try fixture.begin(get_1_1);
    defer fixture.deinit();
    _ = fixture.fill_socket();
    try fixture.reply.start("200 OK");
    const piece: [5000]u8 = @splat('x');
    var count: usize = 0;
    while (try fixture.reply.offer(&piece, null) == .more) count += 1;
    try testing.expect(count >= 18 and count <= 21);
    // One that waits gives up after its time.
    try testing.expectError(error.ClientGone, fixture.reply.write(&piece, null));
    try testing.expect(fixture.reply.progress.broken);
    try testing.expectError(error.ClientGone, fixture.reply.write(&piece, null));
    try testing.expectError(error.ClientGone, fixture.reply.finish());
}

test "reply: the client is gone" {
    var fixture: Fixture = .{};
    try fixture.begin(get_1_1);
    defer fixture.deinit();
    sys.close(fixture.client);
    fixture.client = sys.no_fd;
    try fixture.reply.start("200 OK");
    try testing.expectError(error.ClientGone, fixture.reply.write("x", null));
    try testing.expect(fixture.reply.progress.broken);
    fixture.reply.abort();
}

test "reply: early hints on a full socket, large ones too" {
    for ([_]bool{ false, true }) |after_another| {
        var fixture: Fixture = .{};
        try fixture.begin(get_1_1);
        defer fixture.deinit();
        const reply = &fixture.reply;
        if (after_another) {
            try reply.start("200 OK");
            try reply.write("", 0);
            try reply.finish();
            reply.begin(&fixture.connection, fixture.exchange, true);
        }
        const skipped = fixture.fill_socket();
        const link: [20_000]u8 = @splat('l');
        for (0..3) |_| {
            try testing.expect(reply.takes_interim());
            try reply.interim.begin_early_hints();
            try reply.interim.add("Link", &link);
            try reply.send_early_hints();
        }
        try reply.start("200 OK");
        try reply.write("body", 4);
        try testing.expect(!reply.takes_interim());
        try reply.finish();
        var all = try fixture.take();
        defer all.deinit(gpa);
        const rest = all.items[skipped..];
        try testing.expectEqual(3, std.mem.count(u8, rest, "HTTP/1.1 103 Early Hints\r\n"));
        try testing.expectEqual(3, std.mem.count(u8, rest, &link));
        try testing.expect(std.mem.endsWith(u8, rest, "\r\n\r\nbody"));
    }
}

test "reply: a head as large as it may be, with a body behind it" {
    var fixture: Fixture = .{};
    try fixture.begin(get_1_1);
    defer fixture.deinit();
    const reply = &fixture.reply;
    try reply.start("200 OK");
    const value: [1000]u8 = @splat('v');
    while (true) reply.head.add("X", &value) catch break;
    const body: [8000]u8 = @splat('b');
    // Too large a head is said before anything was sent; else all of it is sent or kept.
    if (reply.write(&body, body.len)) {
        try reply.finish();
    } else |err| {
        try testing.expect(err == error.HeadTooLarge or err == error.ClientGone);
        try testing.expect(!reply.progress.head_sent or reply.progress.broken);
    }
}

test "reply: a drain is said in the head, and a parked reply goes on as it was" {
    var fixture: Fixture = .{};
    try fixture.begin(get_1_1);
    defer fixture.deinit();
    const reply = &fixture.reply;
    try reply.start("200 OK");
    try testing.expectEqual(.more, try reply.offer("abc", null));
    reply.park(&fixture);
    fixture.draining.store(true, .monotonic);
    // Meanwhile the worker answers another request.
    var other: Fixture = .{};
    try other.begin(get_1_1);
    defer other.deinit();
    const other_reply = other.reply;
    defer other.reply = other_reply;
    reply.begin(&other.connection, other.exchange, true);
    try reply.start("200 OK");
    try reply.write("x", 1);
    try reply.finish();
    try testing.expect(reply.progress.must_close);
    var all = try other.take();
    defer all.deinit(gpa);
    try testing.expect(std.mem.indexOf(u8, all.items, "\r\nConnection: close\r\n") != null);
    fixture.exchange.continuation = null;
    reply.proceed(&fixture.connection, fixture.exchange);
    try reply.write("def", null);
    try reply.finish();
    try testing.expect(!reply.progress.must_close);
    try fixture.expect_body(0, "3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
}

// ---- Files -------------------------------------------------------------------------------------

fn test_file(size: usize) !sys.Fd {
    const fd = try sys.open_unlinked("/tmp");
    const bytes = try gpa.alloc(u8, size);
    defer gpa.free(bytes);
    fill_pattern(bytes, 0);
    try sys.write_all_at(fd, bytes, 0);
    return fd;
}

fn expect_pattern(bytes: []const u8, offset: u64) !void {
    for (bytes, offset..) |byte, at| if (byte != pattern_byte(at)) return error.Spoiled;
}

test "reply: a file is sent from its offset, whole or as far as its Content-Length" {
    const sizes = [_]u32{ 1, 32 * 1024, 32 * 1024 + 1, 200_000, 3_000_000 };
    for (sizes) |size| for ([_]u32{ 0, 1, size / 2 }) |offset| for ([_]bool{ false, true }) |cut| {
        var fixture: Fixture = .{};
        try fixture.begin(get_1_1);
        defer fixture.deinit();
        const available = size - offset;
        const expected = if (cut) available / 2 else available;
        try fixture.reply.start("200 OK");
        var digits: [16]u8 = undefined;
        if (cut) try fixture.reply.head.add(
            "Content-Length",
            try std.fmt.bufPrint(&digits, "{d}", .{expected}),
        );
        const file = try test_file(size);
        const flow = try fixture.reply.offer_file(.{
            .fd = file,
            .offset = offset,
            .remaining = available,
        });
        const output = &fixture.exchange.output;
        try testing.expectEqual(output.is_empty(), flow == .more);
        // Of a file nothing is kept in memory but its head.
        if (size > 32 * 1024) try testing.expect(output.kept_bytes() < 1000);
        var all = try fixture.take();
        defer all.deinit(gpa);
        try fixture.reply.finish();
        try testing.expect(!fixture.reply.progress.must_close);
        const end = std.mem.indexOf(u8, all.items, "\r\n\r\n").? + 4;
        try testing.expectEqual(expected, all.items.len - end);
        try expect_pattern(all.items[end..], offset);
        try testing.expectEqual(sys.no_fd, output.file.fd);
        try testing.expectEqual(expected, fixture.reply.progress.body_bytes);
    };
}

test "reply: HEAD and statuses without a body send nothing of a file" {
    const cases = [_]struct { []const u8, []const u8, bool }{
        .{ head_1_1, "200 OK", true },
        .{ get_1_1, "304 Not Modified", false },
        .{ get_1_1, "204 No Content", false },
    };
    for (cases) |case| {
        const request, const status, const has_length = case;
        var fixture: Fixture = .{};
        try fixture.begin(request);
        defer fixture.deinit();
        try fixture.reply.start(status);
        const part: FilePart = .{ .fd = try test_file(100), .remaining = 100 };
        try testing.expectEqual(.more, try fixture.reply.offer_file(part));
        try fixture.reply.finish();
        var all = try fixture.take();
        defer all.deinit(gpa);
        try testing.expect(std.mem.endsWith(u8, all.items, "\r\n\r\n"));
        const length = std.mem.indexOf(u8, all.items, "Content-Length: 100\r\n");
        try testing.expectEqual(has_length, length != null);
    }
}

test "reply: a file that is shorter than announced is found out, large or small" {
    for ([_]u32{ 100, 200_000 }) |size| {
        var fixture: Fixture = .{};
        try fixture.begin(get_1_1);
        defer fixture.deinit();
        try fixture.reply.start("200 OK");
        const part: FilePart = .{ .fd = try test_file(size), .remaining = size + 10_000 };
        var flow = try fixture.reply.offer_file(part);
        // As the poller does it.
        while (flow == .full) {
            var buffer: [64 * 1024]u8 = undefined;
            _ = sys.recv(fixture.client, &buffer) catch 0;
            const output = &fixture.exchange.output;
            _ = output.send(gpa, fixture.connection.fd, 100_000) catch |err| switch (err) {
                error.WouldBlock => 0,
                error.FileEnded => {
                    fixture.reply.progress.remaining += output.file.remaining;
                    output.drop_file();
                    flow = .more;
                },
                else => return err,
            };
        }
        try testing.expectError(error.BodyTooShort, fixture.reply.finish());
        try testing.expectEqual(10_000, fixture.reply.progress.remaining);
        try testing.expect(fixture.reply.progress.must_close);
    }
}

test "reply: a file behind what was written before" {
    for ([_]u32{ 1000, 100_000 }) |size| {
        var fixture: Fixture = .{};
        try fixture.begin(get_1_1);
        defer fixture.deinit();
        try fixture.reply.start("200 OK");
        try testing.expect(fixture.reply.takes_file());
        var digits: [16]u8 = undefined;
        const length = try std.fmt.bufPrint(&digits, "{d}", .{size + 5});
        try fixture.reply.head.add("Content-Length", length);
        try fixture.reply.write("begun", null);
        try testing.expect(fixture.reply.takes_file());
        const part: FilePart = .{ .fd = try test_file(size), .remaining = size };
        _ = try fixture.reply.offer_file(part);
        var all = try fixture.take();
        defer all.deinit(gpa);
        try fixture.reply.finish();
        const end = std.mem.indexOf(u8, all.items, "\r\n\r\n").? + 4;
        try testing.expectEqualStrings("begun", all.items[end..][0..5]);
        try testing.expectEqual(size, all.items[end + 5 ..].len);
        try expect_pattern(all.items[end + 5 ..], 0);
    }
    // In chunks a file has to be read.
    var fixture: Fixture = .{};
    try fixture.begin(get_1_1);
    defer fixture.deinit();
    try fixture.reply.start("200 OK");
    try fixture.reply.write("begun", null);
    try testing.expect(!fixture.reply.takes_file());
}

test "reply: a file for a client that has gone is closed" {
    for ([_]u32{ 100, 100_000 }) |size| {
        var fixture: Fixture = .{};
        try fixture.begin(get_1_1);
        defer fixture.deinit();
        sys.close(fixture.client);
        fixture.client = sys.no_fd;
        try fixture.reply.start("200 OK");
        const file = try test_file(size);
        const part: FilePart = .{ .fd = file, .remaining = size };
        try testing.expectError(error.ClientGone, fixture.reply.offer_file(part));
        try testing.expectError(error.ClientGone, fixture.reply.finish());
    }
}

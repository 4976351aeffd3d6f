//! Pieces of log lines: numbers, times, addresses, and what a client said, so that it cannot pass
//! for anything else.
//!
//! A line is made in memory that is there already and is as long as that at the most; what does not
//! fit is left out. Nothing that comes from outside can end a line or a quoted text: in text lines
//! all but printable ASCII is `\xHH`, in JSON `\u00HH`, each byte one character of Latin-1 as in
//! the environ. Owner: the thread that makes the line. GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");
const date_module = @import("date.zig");

pub const Quoting = enum { text, json };

pub const Line = struct {
    buffer: []u8,
    len: usize = 0,

    pub fn written(self: *const Line) []const u8 {
        return self.buffer[0..self.len];
    }

    fn rest(self: *Line) []u8 {
        return self.buffer[self.len..];
    }

    pub inline fn put(self: *Line, bytes: []const u8) void {
        const room = self.buffer.len - self.len;
        if (bytes.len > room) return;
        @memcpy(self.buffer[self.len..][0..bytes.len], bytes);
        self.len += bytes.len;
    }

    // Numbers are most of a line: they are written in place, two digits at once.

    pub fn put_number(self: *Line, number: u64) void {
        const room = self.rest();
        if (room.len < digits_max) return;
        if (number < 10) {
            room[0] = '0' + @as(u8, @intCast(number));
            self.len += 1;
        } else if (number < 1000) {
            // Octets of addresses, statuses, most sizes.
            const hundreds: u8 = @intCast(number / 100);
            const skipped: usize = @intFromBool(hundreds == 0);
            room[0] = '0' + hundreds;
            room[1 - skipped ..][0..2].* = pairs[@intCast(number % 100)];
            self.len += 3 - skipped;
        } else {
            var count: usize = 4;
            var bound: u64 = 10_000;
            while (number >= bound and count < digits_max) : (count += 1) bound *|= 10;
            put_digits(room[0..count], number);
            self.len += count;
        }
    }

    /// Seconds with six decimals.
    pub fn put_seconds(self: *Line, time_ns: u64) void {
        const time_us = time_ns / std.time.ns_per_us;
        self.put_number(time_us / std.time.us_per_s);
        const room = self.rest();
        if (room.len < 7) return;
        room[0] = '.';
        const decimals: u32 = @intCast(time_us % std.time.us_per_s);
        room[1..3].* = pairs[decimals / 10_000];
        room[3..5].* = pairs[decimals / 100 % 100];
        room[5..7].* = pairs[decimals % 100];
        self.len += 7;
    }

    /// Milliseconds with three decimals.
    pub fn put_milliseconds(self: *Line, time_ns: u64) void {
        var decimals: [4]u8 = ".000".*;
        put_digits(decimals[1..], time_ns / std.time.ns_per_us % 1000);
        self.put_number(time_ns / std.time.ns_per_ms);
        self.put(&decimals);
    }

    /// What comes from outside, without the quotes round it; cut at `bytes_max` of its own bytes.
    pub fn put_escaped(self: *Line, text: []const u8, quoting: Quoting, bytes_max: usize) void {
        const shown = text[0..@min(text.len, bytes_max)];
        var start = find_special(shown, 0);
        self.put(shown[0..start]);
        if (start == text.len) return;
        while (start < shown.len) {
            const end = find_special(shown, start);
            self.put(shown[start..end]);
            if (end == shown.len) break;
            self.put_special(shown[end], quoting);
            start = end + 1;
        }
        if (shown.len < text.len) self.put("...");
    }

    fn put_special(self: *Line, byte: u8, quoting: Quoting) void {
        if (byte == '"' or byte == '\\') return self.put(&.{ '\\', byte });
        const digits = "0123456789abcdef";
        const high = digits[byte >> 4];
        const low = digits[byte & 15];
        switch (quoting) {
            .text => self.put(&.{ '\\', 'x', high, low }),
            .json => self.put(&.{ '\\', 'u', '0', '0', high, low }),
        }
    }

    /// The address of a client; "unix:" for one that has none, as other servers have it.
    pub fn put_address(self: *Line, address: *const sys.Address) void {
        if (sys.address_bytes4(address)) |bytes| {
            for (bytes, 0..) |byte, index| {
                if (index > 0) self.put(".");
                self.put_number(byte);
            }
            return;
        }
        var storage: [sys.address_text_bytes_max]u8 = undefined;
        const text = sys.address_text(address, &storage);
        self.put(if (text.len > 0) text else "unix:");
    }
};

const digits_max = 20;

const pairs: [100][2]u8 = blk: {
    var table: [100][2]u8 = undefined;
    for (&table, 0..) |*pair, number| pair.* = .{ '0' + number / 10, '0' + number % 10 };
    break :blk table;
};

/// The last digits of `number`, as many as there is room for.
fn put_digits(digits: []u8, number: u64) void {
    var value = number;
    var place = digits.len;
    while (place >= 2) : (value /= 100) {
        place -= 2;
        digits[place..][0..2].* = pairs[@intCast(value % 100)];
    }
    if (place == 1) digits[0] = '0' + @as(u8, @intCast(value % 10));
}

const block_len = 16;
const Block = @Vector(block_len, u8);

/// Index of the first byte at or after `from` that is not printable ASCII, or is a quote or a
/// backslash; text.len when none.
fn find_special(text: []const u8, from: usize) usize {
    var at = from;
    while (text.len - at >= block_len) : (at += block_len) {
        const block: Block = text[at..][0..block_len].*;
        // 0x20 to 0x7e become 0 to 0x5e.
        const outside = block -% @as(Block, @splat(0x20)) > @as(Block, @splat(0x5e));
        const quote = block == @as(Block, @splat('"'));
        const backslash = block == @as(Block, @splat('\\'));
        const mask: u16 = @bitCast(outside | quote | backslash);
        if (mask != 0) return at + @ctz(mask);
    }
    while (at < text.len) : (at += 1) {
        const byte = text[at];
        if (byte -% 0x20 > 0x5e or byte == '"' or byte == '\\') return at;
    }
    return at;
}

/// The time of a line in both ways, made once a second.
pub const Stamp = struct {
    seconds: u64 = std.math.maxInt(u64),
    /// As Common Log Format has it, in UTC.
    common: [common_bytes]u8 = @splat(' '),
    /// As RFC 3339 has it, up to the seconds.
    plain: [plain_bytes]u8 = @splat(' '),

    const common_bytes = "06/Nov/1994:08:49:37 +0000".len;
    const plain_bytes = "1994-11-06T08:49:37".len;

    fn at(self: *Stamp, seconds: u64) void {
        if (self.seconds == seconds) return;
        self.seconds = seconds;
        // "Sun, 06 Nov 1994 08:49:37 GMT"
        const date = date_module.format(seconds);
        self.common = (date[5..7] ++ "/" ++ date[8..11] ++ "/" ++ date[12..16] ++ ":" ++
            date[17..25] ++ " +0000").*;
        var month: [2]u8 = undefined;
        put_digits(&month, date_module.month_of(seconds));
        self.plain = date[12..16].* ++ "-".* ++ month ++ "-".* ++ date[5..7].* ++ "T".* ++
            date[17..25].*;
    }

    pub fn put_common(self: *Stamp, line: *Line, now_ms: u64) void {
        self.at(now_ms / std.time.ms_per_s);
        line.put(&self.common);
    }

    /// With milliseconds, as the rest of the log has it.
    pub fn put_plain(self: *Stamp, line: *Line, now_ms: u64) void {
        self.at(now_ms / std.time.ms_per_s);
        line.put(&self.plain);
        var decimals: [5]u8 = ".000Z".*;
        put_digits(decimals[1..4], now_ms % std.time.ms_per_s);
        line.put(&decimals);
    }
};

pub const Level = enum(u8) { @"error", warning, info };

/// What every record of the log begins with, as serve_zig/logging.py writes it. The message is the
/// server's own and needs no escape; `end` goes behind it.
pub fn begin_record(
    line: *Line,
    stamp: *Stamp,
    now_ms: u64,
    quoting: Quoting,
    level: Level,
) void {
    switch (quoting) {
        .text => {
            stamp.put_plain(line, now_ms);
            line.put(" ");
            line.put(@tagName(level));
            line.put(" ");
        },
        .json => {
            line.put("{\"time\":\"");
            stamp.put_plain(line, now_ms);
            line.put("\",\"level\":\"");
            line.put(@tagName(level));
            line.put("\",\"message\":\"");
        },
    }
}

const testing = std.testing;

fn expect_escaped(expected: []const u8, text: []const u8, quoting: Quoting) !void {
    var buffer: [400]u8 = undefined;
    var line: Line = .{ .buffer = &buffer };
    line.put_escaped(text, quoting, 50);
    try testing.expectEqualStrings(expected, line.written());
}

test "log text: what a client says stays within its quotes" {
    try expect_escaped("plain text", "plain text", .text);
    try expect_escaped("a\\\"b\\\\c", "a\"b\\c", .text);
    try expect_escaped("a\\\"b\\\\c", "a\"b\\c", .json);
    try expect_escaped("\\x0a\\x00\\x7f\\xff\\x1b", "\n\x00\x7f\xff\x1b", .text);
    try expect_escaped("\\u000a\\u0000\\u007f\\u00ff\\u001b", "\n\x00\x7f\xff\x1b", .json);
    try expect_escaped("", "", .json);
    try expect_escaped("x" ** 50 ++ "...", "x" ** 51, .text);
}

test "log text: JSON of any bytes gives the same bytes as Latin-1" {
    var bytes: [256]u8 = undefined;
    for (&bytes, 0..) |*byte, index| byte.* = @intCast(index);
    var buffer: [4000]u8 = undefined;
    for (0..20) |from| {
        var line: Line = .{ .buffer = &buffer };
        line.put("\"");
        line.put_escaped(bytes[from..], .json, 1000);
        line.put("\"");
        const parsed = try std.json.parseFromSlice([]u8, testing.allocator, line.written(), .{});
        defer parsed.deinit();
        var expected: [600]u8 = undefined;
        var len: usize = 0;
        for (bytes[from..]) |byte| len += try std.unicode.utf8Encode(byte, expected[len..]);
        try testing.expectEqualStrings(expected[0..len], parsed.value);
    }
}

test "log text: special bytes are found at every place" {
    var text: [40]u8 = undefined;
    for ("\"\\\x1f\x7f\x80\n") |special| for (0..text.len) |place| for (0..3) |from| {
        @memset(&text, '~');
        text[place] = special;
        const expected = if (place >= from) place else text.len;
        try testing.expectEqual(expected, find_special(&text, from));
    };
    try testing.expectEqual(40, find_special(&@as([40]u8, @splat(' ')), 0));
}

test "log text: times" {
    var buffer: [100]u8 = undefined;
    const Case = struct { u64, []const u8, []const u8 };
    for ([_]Case{
        .{ 0, "0.000000", "0.000" },
        .{ 1_999, "0.000001", "0.001" },
        .{ 1_234_567_890, "1.234567", "1234.567" },
        .{ 3_600_000_001_000, "3600.000001", "3600000.001" },
    }) |case| {
        var line: Line = .{ .buffer = &buffer };
        line.put_seconds(case[0]);
        try testing.expectEqualStrings(case[1], line.written());
        line.len = 0;
        line.put_milliseconds(case[0]);
        try testing.expectEqualStrings(case[2], line.written());
    }
    var line: Line = .{ .buffer = &buffer };
    line.put_seconds(std.math.maxInt(u64));
    try testing.expectEqualStrings("18446744073.709551", line.written());
}

test "log text: numbers" {
    var buffer: [64]u8 = undefined;
    var number: u64 = 0;
    while (number < std.math.maxInt(u64) / 20) : (number += number / 9 + 1) {
        for ([_]u64{ number, number * 10, std.math.maxInt(u64) - number }) |value| {
            var line: Line = .{ .buffer = &buffer };
            line.put_number(value);
            var storage: [20]u8 = undefined;
            const expected = try std.fmt.bufPrint(&storage, "{d}", .{value});
            try testing.expectEqualStrings(expected, line.written());
        }
    }
}

test "log text: the time of a line in both formats" {
    var stamp: Stamp = .{};
    var buffer: [100]u8 = undefined;
    var line: Line = .{ .buffer = &buffer };
    stamp.put_common(&line, 784111777_042);
    line.put("|");
    stamp.put_plain(&line, 784111777_042);
    line.put("|");
    stamp.put_plain(&line, 784111778_999);
    try testing.expectEqualStrings("06/Nov/1994:08:49:37 +0000|1994-11-06T08:49:37.042Z|" ++
        "1994-11-06T08:49:38.999Z", line.written());
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

test "log text: what does not fit is left out" {
    var buffer: [5]u8 = undefined;
    var line: Line = .{ .buffer = &buffer };
    line.put("abc");
    line.put("defg");
    line.put_number(12);
    line.put("x");
    // A number wants room for any.
    try testing.expectEqualStrings("abcx", line.written());
}

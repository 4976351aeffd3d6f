//! Range requests (RFC 9110 14): which parts of a representation a client asks for.
//!
//! Sets of ranges that ask for more than there is, or for more parts than anybody needs, are a
//! known way to make a server work (RFC 9110 17.15); they get the whole representation. Pure; any
//! thread; GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");
const field_values = @import("field_values.zig");

/// Most ranges of a request; with more the field is ignored.
pub const ranges_max = 16;

/// At least one byte.
pub const Range = struct {
    start: u64,
    length: u64,

    fn end(self: Range) u64 {
        return self.start + self.length;
    }
};

pub const Selection = union(enum) {
    /// The field asks for nothing that can be given in parts: 200.
    whole,
    /// 416
    unsatisfiable,
    /// 206; one or more, in the order in which they are sent.
    parts: []const Range,
};

/// Reads a Range field's value, for a representation of `size` bytes.
pub fn select(value: []const u8, size: u64, storage: *[ranges_max]Range) Selection {
    const unit = "bytes=";
    if (value.len < unit.len) return .whole;
    // Names of range units are case-insensitive (RFC 9110 14.1).
    if (!scanner.equals_ignoring_case(value[0..unit.len], unit)) return .whole;
    var elements: field_values.Elements = .{ .rest = value[unit.len..] };
    var asked: usize = 0;
    var count: usize = 0;
    while (elements.next()) |element| {
        const range = parse(element, size) orelse return .whole;
        asked += 1;
        if (asked > ranges_max) return .whole;
        if (range.length == 0) continue;
        storage[count] = range;
        count += 1;
    }
    if (asked == 0) return .whole;
    // The last bytes of nothing are nothing, which no 206 can say (RFC 9110 14.1.2).
    if (size == 0) return if (is_suffix(value)) .whole else .unsatisfiable;
    if (count == 0) return .unsatisfiable;
    const parts = coalesce(storage[0..count]);
    var total: u64 = 0;
    for (parts) |part| total += part.length;
    if (parts.len > 1 and total >= size) return .whole;
    return .{ .parts = parts };
}

/// Null when it is no range; of length 0 when nothing of it is there.
fn parse(text: []const u8, size: u64) ?Range {
    const dash = std.mem.indexOfScalar(u8, text, '-') orelse return null;
    const nothing: Range = .{ .start = 0, .length = 0 };
    if (dash == 0) {
        const suffix = number(text[1..]) orelse return null;
        const length = @min(suffix, size);
        return .{ .start = size - length, .length = length };
    }
    const first = number(text[0..dash]) orelse return null;
    if (dash + 1 == text.len) {
        if (first >= size) return nothing;
        return .{ .start = first, .length = size - first };
    }
    const last = number(text[dash + 1 ..]) orelse return null;
    if (last < first) return null;
    if (first >= size) return nothing;
    return .{ .start = first, .length = @min(last, size - 1) - first + 1 };
}

fn is_suffix(value: []const u8) bool {
    var elements: field_values.Elements = .{ .rest = value["bytes=".len..] };
    while (elements.next()) |element| {
        if (element[0] == '-' and (number(element[1..]) orelse 0) > 0) return true;
    }
    return false;
}

/// However long: what is beyond any file stays there.
fn number(digits: []const u8) ?u64 {
    if (digits.len == 0) return null;
    var value: u64 = 0;
    for (digits) |byte| {
        if (!scanner.is_digit(byte)) return null;
        value = value *| 10 +| (byte - '0');
    }
    return value;
}

/// Ranges that overlap or touch become one (RFC 9110 15.3.7.2), and then stand in order; others
/// stay as they were asked for.
fn coalesce(ranges: []Range) []Range {
    if (!has_overlap(ranges)) return ranges;
    std.mem.sortUnstable(Range, ranges, {}, begins_before);
    var count: usize = 1;
    for (ranges[1..]) |range| {
        const last = &ranges[count - 1];
        if (range.start <= last.end()) {
            last.length = @max(last.end(), range.end()) - last.start;
        } else {
            ranges[count] = range;
            count += 1;
        }
    }
    return ranges[0..count];
}

fn has_overlap(ranges: []const Range) bool {
    for (ranges, 0..) |one, index| for (ranges[index + 1 ..]) |other| {
        if (one.start <= other.end() and other.start <= one.end()) return true;
    };
    return false;
}

fn begins_before(_: void, one: Range, other: Range) bool {
    return one.start < other.start;
}

const testing = std.testing;

fn expect_parts(value: []const u8, size: u64, expected: []const [2]u64) !void {
    var storage: [ranges_max]Range = undefined;
    errdefer std.debug.print("{s} of {d}\n", .{ value, size });
    const parts = select(value, size, &storage).parts;
    try testing.expectEqual(expected.len, parts.len);
    for (expected, parts) |pair, part| {
        try testing.expectEqual(pair[0], part.start);
        try testing.expectEqual(pair[1], part.length);
    }
}

fn expect_no_parts(expected: std.meta.Tag(Selection), value: []const u8, size: u64) !void {
    var storage: [ranges_max]Range = undefined;
    errdefer std.debug.print("{s} of {d}\n", .{ value, size });
    try testing.expectEqual(expected, std.meta.activeTag(select(value, size, &storage)));
}

test "one range" {
    try expect_parts("bytes=0-0", 10, &.{.{ 0, 1 }});
    try expect_parts("bytes=0-9", 10, &.{.{ 0, 10 }});
    try expect_parts("bytes=0-", 10, &.{.{ 0, 10 }});
    try expect_parts("bytes=9-", 10, &.{.{ 9, 1 }});
    try expect_parts("bytes=4-99", 10, &.{.{ 4, 6 }});
    try expect_parts("bytes=-3", 10, &.{.{ 7, 3 }});
    try expect_parts("bytes=-99", 10, &.{.{ 0, 10 }});
    try expect_parts("BYTES=1-2", 10, &.{.{ 1, 2 }});
    try expect_parts("bytes= 1-2 ,", 10, &.{.{ 1, 2 }});
    try expect_parts("bytes=5368709120-5368709123", 6 << 30, &.{.{ 5 << 30, 4 }});
    try expect_parts("bytes=1-99999999999999999999999999", 10, &.{.{ 1, 9 }});
    try expect_parts("bytes=0-0", 1, &.{.{ 0, 1 }});
}

test "what is no set of ranges is ignored" {
    for ([_][]const u8{
        "",              "bytes",         "bytes=",     "bytes=,",    "bytes=a-b",
        "bytes=1",       "bytes=2-1",     "bytes=-",    "bytes=1-2-", "bytes=--1",
        "bytes=0x1-2",   "bytes=1 - 2",   "lines=1-2",  "bytes 1-2",  "bytes=1-2;3-4",
        "bytes=0-1,2-1", "bytes=0-1,x-y", "bytes=+1-2", "bytes =1-2", "bytes=\"0-1\"",
    }) |value| try expect_no_parts(.whole, value, 10);
}

test "what is not there" {
    try expect_no_parts(.unsatisfiable, "bytes=10-", 10);
    try expect_no_parts(.unsatisfiable, "bytes=10-11", 10);
    try expect_no_parts(.unsatisfiable, "bytes=-0", 10);
    try expect_no_parts(.unsatisfiable, "bytes=10-,-0,99999999999999999999999-", 10);
    try expect_no_parts(.unsatisfiable, "bytes=0-0", 0);
    try expect_no_parts(.unsatisfiable, "bytes=0-", 0);
    try expect_no_parts(.unsatisfiable, "bytes=-0", 0);
    try expect_no_parts(.whole, "bytes=-1", 0);
}

test "several ranges keep their order" {
    try expect_parts("bytes=0-1,4-5", 10, &.{ .{ 0, 2 }, .{ 4, 2 } });
    try expect_parts("bytes=4-5, 0-1", 10, &.{ .{ 4, 2 }, .{ 0, 2 } });
    try expect_parts("bytes=0-1,99-,-2", 10, &.{ .{ 0, 2 }, .{ 8, 2 } });
    try expect_parts("bytes=0-1,99-", 10, &.{.{ 0, 2 }});
}

test "ranges that overlap or touch become one" {
    try expect_parts("bytes=0-3,2-5", 10, &.{.{ 0, 6 }});
    try expect_parts("bytes=4-5,2-3", 10, &.{.{ 2, 4 }});
    try expect_parts("bytes=8-9,0-1,1-2", 10, &.{ .{ 0, 3 }, .{ 8, 2 } });
    try expect_parts("bytes=0-0,0-0,0-0", 10, &.{.{ 0, 1 }});
    try expect_parts("bytes=0-5,1-2", 10, &.{.{ 0, 6 }});
    // All of it is one part.
    try expect_parts("bytes=0-4,5-9", 10, &.{.{ 0, 10 }});
}

test "as many ranges as are allowed, and one more" {
    const pair = ",0-0,2-2";
    try testing.expectEqual(0, ranges_max % 2);
    const many = "bytes=" ++ pair ** (ranges_max / 2);
    try expect_parts(many, 10, &.{ .{ 0, 1 }, .{ 2, 1 } });
    try expect_no_parts(.whole, many ++ ",4-4", 10);
    try expect_no_parts(.whole, many ++ ",99-", 10);
}

test "any set of ranges is inside the representation" {
    var random = std.Random.DefaultPrng.init(0x9110_14);
    const alphabet = "0123456789--,,  9";
    var text: [40]u8 = undefined;
    @memcpy(text[0..6], "bytes=");
    for (0..50_000) |_| {
        const length = random.random().intRangeAtMost(usize, 6, text.len);
        for (text[6..length]) |*byte| {
            byte.* = alphabet[random.random().uintLessThan(usize, alphabet.len)];
        }
        const size = random.random().uintLessThan(u64, 120);
        var storage: [ranges_max]Range = undefined;
        switch (select(text[0..length], size, &storage)) {
            .whole, .unsatisfiable => {},
            .parts => |parts| {
                try testing.expect(parts.len > 0);
                var total: u64 = 0;
                for (parts) |part| {
                    try testing.expect(part.length > 0 and part.end() <= size);
                    total += part.length;
                }
                try testing.expect(total <= size);
            },
        }
    }
}

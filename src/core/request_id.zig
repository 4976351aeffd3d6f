//! What links a request to the others and to whoever sent it on: its id, the trace that it is part
//! of (W3C Trace Context), and how long it has waited before it came here.
//!
//! An id of our own is 16 digits that tell processes apart and 16 that count the requests of this
//! one. Pure, but for the random numbers of `random_prefix`; any thread; GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");

pub const prefix_bytes = 16;
pub const own_bytes = 32;
/// Longest id that is taken from a proxy: two UUIDs and some words.
pub const given_bytes_max = 128;

/// The half of every id that is the same for this process.
pub fn random_prefix() [prefix_bytes]u8 {
    var random: [prefix_bytes / 2]u8 = undefined;
    std.crypto.random.bytes(&random);
    return std.fmt.bytesToHex(random, .lower);
}

/// Writes the half that counts: 16 lower-case digits.
pub fn write_number(text: *[own_bytes - prefix_bytes]u8, number: u64) void {
    const bytes: @Vector(8, u8) = @bitCast(@byteSwap(number));
    const high = bytes >> @splat(4);
    const low = bytes & @as(@Vector(8, u8), @splat(15));
    const digits: @Vector(16, u8) = std.simd.interlace(.{ high, low });
    const is_letter = digits > @as(@Vector(16, u8), @splat(9));
    const letters: @Vector(16, u8) = @splat('a' - 10);
    const figures: @Vector(16, u8) = @splat('0');
    text.* = digits + @select(u8, is_letter, letters, figures);
}

/// Whether a proxy's id can go into a field, a log line and the environ as it is: visible ASCII,
/// without what would end a string.
pub fn is_acceptable(text: []const u8) bool {
    if (text.len == 0 or text.len > given_bytes_max) return false;
    for (text) |byte| {
        if (byte <= ' ' or byte >= 0x7f or byte == '"' or byte == '\\') return false;
    }
    return true;
}

/// The trace id of a `traceparent` (W3C Trace Context, 3.2.2); null when it is not valid, which is
/// as if there were none.
pub fn trace_id_of(traceparent: []const u8) ?[]const u8 {
    const length = "00-".len + 32 + "-".len + 16 + "-00".len;
    if (traceparent.len < length) return null;
    const version = traceparent[0..2];
    if (!is_lower_hex(version) or std.mem.eql(u8, version, "ff")) return null;
    // A later version may have more behind; this one may not.
    const is_longer = traceparent.len > length;
    if (is_longer and (std.mem.eql(u8, version, "00") or traceparent[length] != '-')) return null;
    for ([_]usize{ 2, 35, 52 }) |at| if (traceparent[at] != '-') return null;
    const trace_id = traceparent[3..35];
    const parent_id = traceparent[36..52];
    if (!is_lower_hex(trace_id) or !is_lower_hex(parent_id)) return null;
    if (!is_lower_hex(traceparent[53..55])) return null;
    if (is_all_zero(trace_id) or is_all_zero(parent_id)) return null;
    return trace_id;
}

fn is_lower_hex(text: []const u8) bool {
    for (text) |byte| {
        if (!scanner.is_digit(byte) and (byte < 'a' or byte > 'f')) return false;
    }
    return true;
}

fn is_all_zero(text: []const u8) bool {
    for (text) |byte| if (byte != '0') return false;
    return true;
}

/// A wait beyond this is a clock that is wrong, not a queue.
const waited_ns_max = std.time.ns_per_hour;

/// How long ago a proxy has put the request into its queue, by X-Request-Start or X-Queue-Start:
/// "t=1700000000.123", or the number alone, in seconds, milliseconds, microseconds or nanoseconds
/// since the epoch (proxies differ, and the size of the number tells). 0 when it cannot be told.
pub fn waited_ns(field_value: []const u8, now_ns: u64) u64 {
    const number = if (std.mem.startsWith(u8, field_value, "t=")) field_value[2..] else field_value;
    const start_ns = epoch_ns(number) orelse return 0;
    const waited = now_ns -| start_ns;
    return if (waited > waited_ns_max) 0 else waited;
}

fn epoch_ns(text: []const u8) ?u64 {
    const dot = std.mem.indexOfScalar(u8, text, '.') orelse text.len;
    const whole = digits_of(text[0..dot]) orelse return null;
    // The year 5138 in each unit.
    const unit_ns: u64 = if (whole < 100_000_000_000)
        std.time.ns_per_s
    else if (whole < 100_000_000_000_000)
        std.time.ns_per_ms
    else if (whole < 100_000_000_000_000_000)
        std.time.ns_per_us
    else
        1;
    var start = std.math.mul(u64, whole, unit_ns) catch return null;
    if (dot == text.len) return start;
    const fraction = text[dot + 1 ..];
    if (fraction.len == 0) return null;
    var place = unit_ns;
    for (fraction) |byte| {
        if (!scanner.is_digit(byte)) return null;
        place /= 10;
        start +|= place * (byte - '0');
    }
    return start;
}

fn digits_of(text: []const u8) ?u64 {
    if (text.len == 0 or text.len > 19) return null;
    var number: u64 = 0;
    for (text) |byte| {
        if (!scanner.is_digit(byte)) return null;
        number = number * 10 + (byte - '0');
    }
    return number;
}

const testing = std.testing;

test "request id: the number is hexadecimal" {
    var text: [16]u8 = undefined;
    for ([_]u64{ 0, 1, 0x9abcdef0_12345678, std.math.maxInt(u64) }) |number| {
        write_number(&text, number);
        var expected: [16]u8 = undefined;
        const printed = try std.fmt.bufPrint(&expected, "{x:0>16}", .{number});
        try testing.expectEqualStrings(printed, &text);
    }
    try testing.expect(!std.mem.eql(u8, &random_prefix(), &random_prefix()));
}

test "request id: what a proxy may give" {
    for ([_][]const u8{ "a", "7d1f-22.x/+=", "x" ** 128 }) |good| {
        try testing.expect(is_acceptable(good));
    }
    for ([_][]const u8{ "", "a b", "a\"", "a\\", "\x7f", "caf\xe9", "a\tb", "x" ** 129 }) |bad| {
        try testing.expect(!is_acceptable(bad));
    }
}

test "request id: trace ids of valid traceparents alone" {
    const trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    const valid = "00-" ++ trace ++ "-00f067aa0ba902b7-01";
    try testing.expectEqualStrings(trace, trace_id_of(valid).?);
    const later = "cc" ++ valid[2..] ++ "-what the future holds";
    try testing.expectEqualStrings(trace, trace_id_of(later).?);
    for ([_][]const u8{
        "",
        valid[0..54],
        valid ++ "-x",
        "cc" ++ valid[2..] ++ "x",
        "ff" ++ valid[2..],
        "0g" ++ valid[2..],
        "00-" ++ "4BF92F3577B34DA6A3CE929D0E0E4736" ++ valid[35..],
        "00-" ++ "0" ** 32 ++ valid[35..],
        valid[0..36] ++ "0" ** 16 ++ "-01",
        valid[0..52] ++ "_01",
        valid[0..53] ++ "0z",
    }) |bad| try testing.expectEqual(null, trace_id_of(bad));
}

test "request id: each way in which proxies write when a request came" {
    const now: u64 = 1_700_000_000_500_000_000;
    for ([_][]const u8{
        "t=1700000000.123", "1700000000.123",      "1700000000123", "t=1700000000123.0",
        "1700000000123000", "1700000000123000000",
    }) |text| try testing.expectEqual(377_000_000, waited_ns(text, now));
    try testing.expectEqual(500_000_000, waited_ns("1700000000", now));
    // From the future, from long ago, or no time at all.
    for ([_][]const u8{
        "1700000001",    "1699990000",           "",                    "t=", "t=x", "17000000oo", "1700000000.", "-1", "1e9",
        "1700000000.1x", "99999999999999999999", "9999999999999999999",
    }) |text| try testing.expectEqual(0, waited_ns(text, now));
}

//! Dates in request fields (RFC 9110 5.6.7): IMF-fixdate and the two obsolete formats that a
//! recipient has to read, too. Pure; any thread; GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");

const days = [7][]const u8{ "Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat" };
const long_days = [7][]const u8{
    "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
};
const months = [12][]const u8{
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
};

const Civil = struct { year: u32, month: u32, day: u32 };

/// Seconds since the epoch, 0 for what lies before it; null for what is no HTTP-date. `now`
/// decides on the century of a year of two digits.
pub fn parse(text: []const u8, now: u64) ?u64 {
    if (text.len < 4) return null;
    if (text[3] == ',') return parse_fixdate(text);
    if (text[3] == ' ') return parse_asctime(text);
    return parse_rfc850(text, now);
}

/// "Sun, 06 Nov 1994 08:49:37 GMT"
fn parse_fixdate(text: []const u8) ?u64 {
    if (text.len != 29 or !is_one_of(&days, text[0..3]) or text[4] != ' ') return null;
    if (text[7] != ' ' or text[11] != ' ' or text[16] != ' ') return null;
    if (!std.mem.eql(u8, text[25..], " GMT")) return null;
    return seconds_of(.{
        .year = number(text[12..16]) orelse return null,
        .month = month_of(text[8..11]) orelse return null,
        .day = number(text[5..7]) orelse return null,
    }, text[17..25]);
}

/// "Sunday, 06-Nov-94 08:49:37 GMT"
fn parse_rfc850(text: []const u8, now: u64) ?u64 {
    const comma = std.mem.indexOfScalar(u8, text, ',') orelse return null;
    if (!is_one_of(&long_days, text[0..comma])) return null;
    const rest = text[comma + 1 ..];
    if (rest.len != 23 or rest[0] != ' ' or rest[3] != '-' or rest[7] != '-') return null;
    if (rest[10] != ' ' or !std.mem.eql(u8, rest[19..], " GMT")) return null;
    const short_year = number(rest[8..10]) orelse return null;
    const this_year = year_of(now);
    var year = this_year - this_year % 100 + short_year;
    // More than 50 years ahead is the last year with these digits (RFC 9110 5.6.7).
    if (year > this_year + 50) year -= 100;
    return seconds_of(.{
        .year = year,
        .month = month_of(rest[4..7]) orelse return null,
        .day = number(rest[1..3]) orelse return null,
    }, rest[11..19]);
}

/// "Sun Nov  6 08:49:37 1994"
fn parse_asctime(text: []const u8) ?u64 {
    if (text.len != 24 or !is_one_of(&days, text[0..3])) return null;
    if (text[7] != ' ' or text[10] != ' ' or text[19] != ' ') return null;
    const day = if (text[8] == ' ') text[9..10] else text[8..10];
    return seconds_of(.{
        .year = number(text[20..24]) orelse return null,
        .month = month_of(text[4..7]) orelse return null,
        .day = number(day) orelse return null,
    }, text[11..19]);
}

fn seconds_of(date: Civil, clock: []const u8) ?u64 {
    if (date.day == 0 or date.day > days_in(date.year, date.month)) return null;
    if (clock[2] != ':' or clock[5] != ':') return null;
    const hour = number(clock[0..2]) orelse return null;
    const minute = number(clock[3..5]) orelse return null;
    const second = number(clock[6..8]) orelse return null;
    // 60 is a leap second (RFC 9110 5.6.7).
    if (hour > 23 or minute > 59 or second > 60) return null;
    if (date.year < 1970) return 0;
    const time = @as(u64, hour) * 3600 + minute * 60 + second;
    return @as(u64, days_since_epoch(date)) * std.time.s_per_day + time;
}

fn days_since_epoch(date: Civil) u32 {
    // Years begin with March here, so that a leap day is a year's last.
    const year = if (date.month < 3) date.year - 1 else date.year;
    const month = (date.month + 9) % 12;
    const leap_days = year / 4 - year / 100 + year / 400;
    return year * 365 + leap_days + (month * 153 + 2) / 5 + date.day - 1 - 719468;
}

fn days_in(year: u32, month: u32) u32 {
    return switch (month) {
        4, 6, 9, 11 => 30,
        2 => if (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)) 29 else 28,
        else => 31,
    };
}

fn year_of(seconds: u64) u32 {
    const bounded: std.time.epoch.EpochSeconds = .{ .secs = @min(seconds, 253402300799) };
    return bounded.getEpochDay().calculateYearDay().year;
}

fn month_of(name: []const u8) ?u32 {
    for (months, 1..) |month, index| if (std.mem.eql(u8, month, name)) return @intCast(index);
    return null;
}

fn is_one_of(names: []const []const u8, name: []const u8) bool {
    for (names) |one| if (std.mem.eql(u8, one, name)) return true;
    return false;
}

fn number(digits: []const u8) ?u32 {
    var value: u32 = 0;
    for (digits) |byte| {
        if (!scanner.is_digit(byte)) return null;
        value = value * 10 + (byte - '0');
    }
    return value;
}

const testing = std.testing;
const now_2025 = 1_750_000_000;

test "the three formats" {
    inline for (.{
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    }) |text| try testing.expectEqual(784111777, parse(text, now_2025).?);
    try testing.expectEqual(1709251199, parse("Thu, 29 Feb 2024 23:59:59 GMT", now_2025).?);
    try testing.expectEqual(0, parse("Thu, 01 Jan 1970 00:00:00 GMT", now_2025).?);
    try testing.expectEqual(0, parse("Wed, 01 Jan 1969 00:00:00 GMT", now_2025).?);
    try testing.expectEqual(253402300799, parse("Fri, 31 Dec 9999 23:59:59 GMT", now_2025).?);
    try testing.expectEqual(1483228800, parse("Sat, 31 Dec 2016 23:59:60 GMT", now_2025).?);
    try testing.expectEqual(784111777 + 9 * 86400, parse("Tue Nov 15 08:49:37 1994", now_2025).?);
}

test "a year of two digits is no more than fifty years ahead" {
    const in_2075 = parse("Sunday, 06-Nov-75 08:49:37 GMT", now_2025).?;
    try testing.expectEqual(2075, year_of(in_2075));
    const in_1976 = parse("Sunday, 06-Nov-76 08:49:37 GMT", now_2025).?;
    try testing.expectEqual(1976, year_of(in_1976));
}

test "what is no date" {
    inline for (.{
        "",
        "0",
        "yesterday",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06 nov 1994 08:49:37 GMT",
        "Sun, 31 Nov 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Wed, 29 Feb 2023 00:00:00 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 1994 08-49-37 GMT",
        "Sun, 06 Nov 19x4 08:49:37 GMT",
        "Sunday, 06-Nov-1994 08:49:37 GMT",
        "Someday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov 06 08:49:37 94",
        "Sun Nov  6 08:49:37 1994 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT ",
    }) |text| {
        errdefer std.debug.print("accepted: {s}\n", .{text});
        try testing.expectEqual(null, parse(text, now_2025));
    }
}

test "what is formatted is parsed back" {
    const date_module = @import("date.zig");
    var random = std.Random.DefaultPrng.init(0x9110_5_6_7);
    for (0..20_000) |_| {
        const seconds = random.random().uintLessThan(u64, 253402300800);
        try testing.expectEqual(seconds, parse(&date_module.format(seconds), now_2025).?);
    }
}

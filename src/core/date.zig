//! The Date field's value (RFC 9110 5.6.7, IMF-fixdate), formatted once a second.
//!
//! Owner: one for each worker and one for the poller; no sharing, no lock. GIL: not needed.

const std = @import("std");
const epoch = std.time.epoch;

pub const length = "Sun, 06 Nov 1994 08:49:37 GMT".len;

const days = [7][]const u8{ "Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed" };
const months = [12][]const u8{
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
};

pub const Date = struct {
    seconds: u64 = std.math.maxInt(u64),
    text: [length]u8 = @splat('0'),

    /// The text for this second; valid until the next call.
    pub fn at(self: *Date, seconds: u64) *const [length]u8 {
        if (self.seconds != seconds) {
            self.seconds = seconds;
            self.text = format(seconds);
        }
        return &self.text;
    }
};

pub fn format(seconds: u64) [length]u8 {
    // Beyond the year 9999 the format has no room.
    const bounded: epoch.EpochSeconds = .{ .secs = @min(seconds, 253402300799) };
    const day = bounded.getEpochDay();
    const year = day.calculateYearDay();
    const month = year.calculateMonthDay();
    const time = bounded.getDaySeconds();
    var text: [length]u8 = @splat(' ');
    _ = std.fmt.bufPrint(&text, "{s}, {d:0>2} {s} {d:0>4} {d:0>2}:{d:0>2}:{d:0>2} GMT", .{
        days[day.day % 7],
        month.day_index + 1,
        months[month.month.numeric() - 1],
        year.year,
        time.getHoursIntoDay(),
        time.getMinutesIntoHour(),
        time.getSecondsIntoMinute(),
    }) catch return "Thu, 01 Jan 1970 00:00:00 GMT".*;
    return text;
}

/// 1 to 12.
pub fn month_of(seconds: u64) u8 {
    const bounded: epoch.EpochSeconds = .{ .secs = @min(seconds, 253402300799) };
    return bounded.getEpochDay().calculateYearDay().calculateMonthDay().month.numeric();
}

test "dates are IMF-fixdates" {
    try std.testing.expectEqualStrings("Sun, 06 Nov 1994 08:49:37 GMT", &format(784111777));
    try std.testing.expectEqualStrings("Thu, 01 Jan 1970 00:00:00 GMT", &format(0));
    try std.testing.expectEqualStrings("Thu, 29 Feb 2024 23:59:59 GMT", &format(1709251199));
    try std.testing.expectEqualStrings(
        "Fri, 31 Dec 9999 23:59:59 GMT",
        &format(std.math.maxInt(u64)),
    );
}

test "a date changes with the second" {
    var date: Date = .{};
    try std.testing.expectEqualStrings("Sun, 06 Nov 1994 08:49:37 GMT", date.at(784111777));
    try std.testing.expectEqualStrings("Sun, 06 Nov 1994 08:49:37 GMT", date.at(784111777));
    try std.testing.expectEqualStrings("Sun, 06 Nov 1994 08:49:38 GMT", date.at(784111778));
}

//! Conditional requests (RFC 9110 13): whether a GET or HEAD is to be answered, has nothing new to
//! tell, or must not be answered, and whether its Range still means what the client has.
//!
//! Pure; any thread; GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");
const date_parser = @import("date_parser.zig");
const field_values = @import("field_values.zig");
const RequestHead = @import("request_head.zig").RequestHead;

/// Of the representation that would be sent.
pub const Validators = struct {
    /// With its quotes; strong.
    etag: []const u8,
    /// Seconds since the epoch; null when it is not known.
    modified: ?u64,
};

pub const Outcome = enum {
    proceed,
    /// 304
    not_modified,
    /// 412
    failed,
};

/// Steps 1 to 4 of RFC 9110 13.2.2, for GET and HEAD.
pub fn evaluate(
    head: *const RequestHead,
    bytes: []const u8,
    validators: Validators,
    now: u64,
) Outcome {
    if (match_any(head, bytes, .if_match, validators.etag, .strong)) |matches| {
        if (!matches) return .failed;
    } else if (date_of(head, bytes, .if_unmodified_since, now)) |date| {
        if (validators.modified) |modified| if (modified > date) return .failed;
    }
    if (match_any(head, bytes, .if_none_match, validators.etag, .weak)) |matches| {
        if (matches) return .not_modified;
    } else if (date_of(head, bytes, .if_modified_since, now)) |date| {
        if (validators.modified) |modified| if (modified <= date) return .not_modified;
    }
    return .proceed;
}

/// Step 5: whether Range applies, as far as If-Range goes (RFC 9110 13.1.5).
pub fn range_applies(
    head: *const RequestHead,
    bytes: []const u8,
    validators: Validators,
    now: u64,
) bool {
    const value = switch (field_values.single(head, bytes, .if_range)) {
        .none => return true,
        .repeated => return false,
        .value => |value| value,
    };
    if (value.len == 0) return false;
    if (value[0] == '"' or value[0] == 'W') return matches_tag(value, validators.etag, .strong);
    const date = date_parser.parse(value, now) orelse return false;
    const modified = validators.modified orelse return false;
    // A time is a strong validator only when a second change in the same second is ruled out, at
    // least one second later (RFC 9110 8.8.2.2), and it has to be the very one.
    return date == modified and modified < now;
}

const Comparison = enum { strong, weak };

/// Null when the field is not there.
fn match_any(
    head: *const RequestHead,
    bytes: []const u8,
    name: @import("fields.zig").Name,
    etag: []const u8,
    comparison: Comparison,
) ?bool {
    var lines: field_values.Lines = .{ .head = head, .bytes = bytes, .name = name };
    var present = false;
    while (lines.next()) |value| {
        present = true;
        // Any current representation will do; there is one.
        if (std.mem.eql(u8, value, "*")) return true;
        var elements: field_values.Elements = .{ .rest = value };
        while (elements.next()) |tag| if (matches_tag(tag, etag, comparison)) return true;
    }
    return if (present) false else null;
}

/// RFC 9110 8.8.3.2; ours is always a strong one.
fn matches_tag(tag: []const u8, etag: []const u8, comparison: Comparison) bool {
    const opaque_tag = if (comparison == .weak and std.mem.startsWith(u8, tag, "W/"))
        tag[2..]
    else
        tag;
    return std.mem.eql(u8, opaque_tag, etag);
}

/// Null when the field is not there, or not a date: then it is ignored (RFC 9110 13.1.3, 13.1.4).
fn date_of(
    head: *const RequestHead,
    bytes: []const u8,
    name: @import("fields.zig").Name,
    now: u64,
) ?u64 {
    return switch (field_values.single(head, bytes, name)) {
        .none, .repeated => null,
        .value => |value| date_parser.parse(scanner.trim_whitespace(value), now),
    };
}

const testing = std.testing;
const TestRequest = field_values.TestRequest;

const now_test = 784111777 + 1000;
const ours: Validators = .{ .etag = "\"a\"", .modified = 784111777 };
const earlier = "Sun, 06 Nov 1994 08:49:36 GMT";
const same = "Sun, 06 Nov 1994 08:49:37 GMT";
const later = "Sun, 06 Nov 1994 08:49:38 GMT";

fn expect(outcome: Outcome, comptime lines: []const u8) !void {
    var storage: TestRequest = undefined;
    const request = storage.init(lines);
    errdefer std.debug.print("{s}\n", .{lines});
    try testing.expectEqual(outcome, evaluate(&request.head, request.bytes, ours, now_test));
}

fn expect_range(applies: bool, comptime lines: []const u8) !void {
    var storage: TestRequest = undefined;
    const request = storage.init(lines);
    errdefer std.debug.print("{s}\n", .{lines});
    try testing.expectEqual(applies, range_applies(&request.head, request.bytes, ours, now_test));
}

test "without a condition, or with one that holds, the request proceeds" {
    try expect(.proceed, "");
    try expect(.proceed, "If-Match: \"a\"\r\n");
    try expect(.proceed, "If-Match: *\r\n");
    try expect(.proceed, "If-Match: \"b\", \"a\"\r\n");
    try expect(.proceed, "If-Match: \"b\"\r\nIf-Match: \"a\"\r\n");
    try expect(.proceed, "If-None-Match: \"b\"\r\n");
    try expect(.proceed, "If-None-Match: a\r\n");
    try expect(.proceed, "If-None-Match: \"\"\r\n");
    try expect(.proceed, "If-Unmodified-Since: " ++ same ++ "\r\n");
    try expect(.proceed, "If-Modified-Since: " ++ earlier ++ "\r\n");
    try expect(.proceed, "If-Modified-Since: yesterday\r\n");
    try expect(.proceed, "If-Unmodified-Since: yesterday\r\n");
    try expect(.proceed, "If-Modified-Since: " ++ later ++ "\r\nIf-Modified-Since: x\r\n");
}

test "If-None-Match compares weakly" {
    try expect(.not_modified, "If-None-Match: \"a\"\r\n");
    try expect(.not_modified, "If-None-Match: W/\"a\"\r\n");
    try expect(.not_modified, "If-None-Match: \"b,\",W/\"a\"\r\n");
    try expect(.not_modified, "If-None-Match: *\r\n");
    try expect(.not_modified, "If-None-Match: \"b\"\r\nIf-None-Match: \"a\"\r\n");
}

test "If-Match compares strongly" {
    try expect(.failed, "If-Match: W/\"a\"\r\n");
    try expect(.failed, "If-Match: \"b\"\r\n");
    try expect(.failed, "If-Match: \r\n");
    try expect(.failed, "If-Match: a\r\n");
}

test "times" {
    try expect(.not_modified, "If-Modified-Since: " ++ same ++ "\r\n");
    try expect(.not_modified, "If-Modified-Since: " ++ later ++ "\r\n");
    try expect(.not_modified, "If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT\r\n");
    try expect(.failed, "If-Unmodified-Since: " ++ earlier ++ "\r\n");
}

test "precedence (RFC 9110 13.2.2)" {
    // The tag decides, and the time beside it is not looked at.
    try expect(.proceed, "If-None-Match: \"b\"\r\nIf-Modified-Since: " ++ later ++ "\r\n");
    try expect(.not_modified, "If-None-Match: \"a\"\r\nIf-Modified-Since: " ++ earlier ++ "\r\n");
    try expect(.proceed, "If-Match: \"a\"\r\nIf-Unmodified-Since: " ++ earlier ++ "\r\n");
    try expect(.failed, "If-Match: \"b\"\r\nIf-Unmodified-Since: " ++ later ++ "\r\n");
    // What forbids goes before what has nothing new.
    try expect(.failed, "If-None-Match: \"a\"\r\nIf-Match: \"b\"\r\n");
    try expect(.not_modified, "If-None-Match: \"a\"\r\nIf-Match: \"a\"\r\n");
    try expect(
        .failed,
        "If-Modified-Since: " ++ later ++ "\r\nIf-Unmodified-Since: " ++ earlier ++ "\r\n",
    );
}

test "If-Range" {
    try expect_range(true, "");
    try expect_range(true, "If-Range: \"a\"\r\n");
    try expect_range(false, "If-Range: W/\"a\"\r\n");
    try expect_range(false, "If-Range: \"b\"\r\n");
    try expect_range(false, "If-Range: \"b\", \"a\"\r\n");
    try expect_range(true, "If-Range: " ++ same ++ "\r\n");
    try expect_range(false, "If-Range: " ++ earlier ++ "\r\n");
    try expect_range(false, "If-Range: " ++ later ++ "\r\n");
    try expect_range(false, "If-Range: never\r\n");
    try expect_range(false, "If-Range: \r\n");
    try expect_range(false, "If-Range: \"a\"\r\nIf-Range: \"a\"\r\n");
}

test "a time whose second is not over is no strong validator" {
    var storage: TestRequest = undefined;
    const request = storage.init("If-Range: " ++ same ++ "\r\n");
    const modified = ours.modified.?;
    try testing.expect(!range_applies(&request.head, request.bytes, ours, modified));
    try testing.expect(range_applies(&request.head, request.bytes, ours, modified + 1));
}

test "without a time only tags decide" {
    var storage: TestRequest = undefined;
    const timeless: Validators = .{ .etag = "\"a\"", .modified = null };
    const request = storage.init("If-Modified-Since: " ++ later ++ "\r\nIf-Unmodified-Since: " ++
        earlier ++ "\r\nIf-Range: " ++ same ++ "\r\n");
    try testing.expectEqual(
        .proceed,
        evaluate(&request.head, request.bytes, timeless, now_test),
    );
    try testing.expect(!range_applies(&request.head, request.bytes, timeless, now_test));
}

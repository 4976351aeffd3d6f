//! Request targets (RFC 9112 3.2): which of the four forms one has, and where its authority, path
//! and query are; and the percent-decoding that makes PATH_INFO of the path.
//!
//! Data: spans into the caller's buffer; decoding writes into the caller's buffer.
//! Thread: any. GIL: not needed.

const std = @import("std");
const assert = std.debug.assert;
const host = @import("host.zig");
const scanner = @import("scanner.zig");

const Span = scanner.Span;

pub const Form = enum(u8) { origin_form, absolute_form, authority_form, asterisk_form };

pub const Parts = struct {
    form: Form,
    /// Of the absolute and the authority form; else empty.
    authority: Span = .{},
    /// As sent. Empty for the asterisk and the authority form, and for "http://host".
    path: Span = .{},
    /// Without its question mark.
    query: Span = .{},
    has_query: bool = false,
};

/// Takes a target apart. Its bytes were found by scanner.find_target_end, so that it holds no
/// control, space, '#' or byte above ASCII. Null when it has no form that `method` allows.
pub fn parse(bytes: []const u8, target: Span, method: []const u8) ?Parts {
    const text = target.of(bytes);
    assert(text.len > 0);
    // RFC 9112 3.2.3: the authority form is CONNECT's, and CONNECT has no other.
    if (std.mem.eql(u8, method, "CONNECT")) return parse_authority_form(text, target);
    if (text[0] == '/') {
        var parts: Parts = .{ .form = .origin_form };
        divide(&parts, bytes, target);
        return parts;
    }
    if (text.len == 1 and text[0] == '*') {
        // RFC 9112 3.2.4: only for a server-wide OPTIONS.
        if (!std.mem.eql(u8, method, "OPTIONS")) return null;
        return .{ .form = .asterisk_form };
    }
    return parse_absolute_form(bytes, target);
}

fn parse_authority_form(text: []const u8, target: Span) ?Parts {
    // RFC 9110 9.3.6: an empty or invalid port is refused.
    const authority = host.split(text) orelse return null;
    if (authority.port == null) return null;
    return .{ .form = .authority_form, .authority = target };
}

fn parse_absolute_form(bytes: []const u8, target: Span) ?Parts {
    const text = target.of(bytes);
    const scheme_len = scheme_bytes(text) orelse return null;
    var end: u32 = scheme_len;
    while (end < target.len and text[end] != '/' and text[end] != '?') end += 1;
    if (!host.valid(text[scheme_len..end])) return null;
    var parts: Parts = .{
        .form = .absolute_form,
        .authority = .{ .start = target.start + scheme_len, .len = end - scheme_len },
    };
    divide(&parts, bytes, .{ .start = target.start + end, .len = target.len - end });
    return parts;
}

/// Whether a target of the absolute form is of the scheme https.
pub fn is_https(text: []const u8) bool {
    return (scheme_bytes(text) orelse 0) == "https://".len;
}

/// Length of "http://" or "https://" at the start, in any case (RFC 3986 3.1).
fn scheme_bytes(text: []const u8) ?u32 {
    inline for (.{ "http://", "https://" }) |scheme| {
        if (text.len >= scheme.len) {
            if (scanner.equals_ignoring_case(text[0..scheme.len], scheme)) return scheme.len;
        }
    }
    return null;
}

/// Path and query, at the first question mark.
fn divide(parts: *Parts, bytes: []const u8, rest: Span) void {
    const end = rest.start + rest.len;
    const mark: u32 = @intCast(scanner.find_byte(bytes[0..end], rest.start, '?'));
    parts.path = .{ .start = rest.start, .len = mark - rest.start };
    if (mark == end) return;
    parts.has_query = true;
    parts.query = .{ .start = mark + 1, .len = end - mark - 1 };
}

/// Whether decoding would change anything.
pub fn has_percent(path: []const u8) bool {
    return scanner.find_byte(path, 0, '%') != path.len;
}

/// Decodes "%41" and the like into `destination` and returns what was written there. An escape
/// that is none stays as it is, and %2F becomes a slash, as urllib's unquote_to_bytes and the
/// other WSGI servers have it. `destination` is at least as long as `path`; it may be the same
/// memory, or begin before it.
pub fn percent_decode(destination: []u8, path: []const u8) []const u8 {
    assert(destination.len >= path.len);
    var read: usize = 0;
    var written: usize = 0;
    while (read < path.len) {
        const escape = scanner.find_byte(path, read, '%');
        const plain = escape - read;
        @memmove(destination[written..][0..plain], path[read..escape]);
        written += plain;
        read = escape;
        if (read == path.len) break;
        if (decode_escape(path[read..])) |byte| {
            destination[written] = byte;
            read += 3;
        } else {
            destination[written] = '%';
            read += 1;
        }
        written += 1;
    }
    return destination[0..written];
}

fn decode_escape(bytes: []const u8) ?u8 {
    if (bytes.len < 3) return null;
    const high = scanner.hex_value(bytes[1]) orelse return null;
    const low = scanner.hex_value(bytes[2]) orelse return null;
    return @as(u8, high) << 4 | low;
}

const testing = std.testing;

fn parse_text(comptime text: []const u8, method: []const u8) ?Parts {
    // Not at the start of the buffer, so that an offset from the wrong place shows.
    const bytes = "GET " ++ text ++ " HTTP/1.1?%/";
    return parse(bytes, .{ .start = 4, .len = text.len }, method);
}

fn expect_parts(
    comptime text: []const u8,
    method: []const u8,
    form: Form,
    authority: []const u8,
    path: []const u8,
    query: ?[]const u8,
) !void {
    const bytes = "GET " ++ text;
    const parts = parse_text(text, method).?;
    try testing.expectEqual(form, parts.form);
    try testing.expectEqualStrings(authority, parts.authority.of(bytes));
    try testing.expectEqualStrings(path, parts.path.of(bytes));
    try testing.expectEqual(query != null, parts.has_query);
    try testing.expectEqualStrings(query orelse "", parts.query.of(bytes));
}

test "origin form" {
    try expect_parts("/", "GET", .origin_form, "", "/", null);
    try expect_parts("/a/b", "GET", .origin_form, "", "/a/b", null);
    try expect_parts("/a?", "GET", .origin_form, "", "/a", "");
    try expect_parts("/a?b=c?d/e", "GET", .origin_form, "", "/a", "b=c?d/e");
    try expect_parts("//evil.example/a", "GET", .origin_form, "", "//evil.example/a", null);
    try expect_parts("/%zz|\"{}", "GET", .origin_form, "", "/%zz|\"{}", null);
    const long = "/" ++ "a" ** 300 ++ "?" ++ "b" ** 300;
    try expect_parts(long, "GET", .origin_form, "", "/" ++ "a" ** 300, "b" ** 300);
}

test "absolute form" {
    try expect_parts("http://a", "GET", .absolute_form, "a", "", null);
    try expect_parts("http://a/", "GET", .absolute_form, "a", "/", null);
    try expect_parts("HTTPS://a:1/b?c", "GET", .absolute_form, "a:1", "/b", "c");
    try expect_parts("hTTp://[::1]?c", "GET", .absolute_form, "[::1]", "", "c");
    try expect_parts("http://a", "OPTIONS", .absolute_form, "a", "", null);
}

test "authority and asterisk form" {
    try expect_parts("a:443", "CONNECT", .authority_form, "a:443", "", null);
    try expect_parts("[::1]:443", "CONNECT", .authority_form, "[::1]:443", "", null);
    try expect_parts("*", "OPTIONS", .asterisk_form, "", "", null);
}

test "targets that have no form" {
    inline for (.{
        "*",              "a",              "a/b",         "a:443",  "?a",          "**",
        "ftp://a/",       "http:/a",        "http://",     "http:a", "http:///a",   "http://?a",
        "http://u@a/",    "http://a,b",     "http://a:x/", "https:", "http://[::/", "*?a",
        "javascript://a", "http://a:99999", "\\a",
    }) |text| {
        errdefer std.debug.print("accepted: {s}\n", .{text});
        try testing.expectEqual(null, parse_text(text, "GET"));
    }
    inline for (.{ "/", "*", "http://a/", "a", "a:", "a:x", ":443", "u@a:443" }) |text| {
        errdefer std.debug.print("accepted: {s}\n", .{text});
        try testing.expectEqual(null, parse_text(text, "CONNECT"));
    }
    try testing.expectEqual(null, parse_text("*", "options"));
    try testing.expectEqual(null, parse_text("**", "OPTIONS"));
}

test "which absolute targets are of the scheme https" {
    inline for (.{ "https://a/", "HTTPS://a", "hTTpS://a:80?b" }) |text| {
        try testing.expect(is_https(text));
    }
    inline for (.{ "http://a/", "HTTP://a/https://b/", "http://https://", "/https://a/" }) |text| {
        try testing.expect(!is_https(text));
    }
}

test "percent-decoding" {
    const cases = [_][2][]const u8{
        .{ "", "" },
        .{ "/", "/" },
        .{ "/a%20b", "/a b" },
        .{ "/a%2Fb%2fc", "/a/b/c" },
        .{ "%41%42%43", "ABC" },
        .{ "%", "%" },
        .{ "%4", "%4" },
        .{ "%%41", "%A" },
        .{ "%4%41", "%4A" },
        .{ "%zz%G0%0G", "%zz%G0%0G" },
        .{ "/%c3%A9", "/\xc3\xa9" },
        .{ "%2541", "%41" },
        .{ "%00", "\x00" },
        .{ "a+b", "a+b" },
    };
    var buffer: [64]u8 = undefined;
    for (cases) |case| {
        const path, const decoded = case;
        try testing.expectEqualStrings(decoded, percent_decode(&buffer, path));
        // In place.
        @memcpy(buffer[0..path.len], path);
        const in_place = percent_decode(&buffer, buffer[0..path.len]);
        try testing.expectEqualStrings(decoded, in_place);
        // Into memory that begins before the path.
        @memcpy(buffer[3..][0..path.len], path);
        const shifted = percent_decode(&buffer, buffer[3..][0..path.len]);
        try testing.expectEqualStrings(decoded, shifted);
        try testing.expectEqual(std.mem.indexOfScalar(u8, path, '%') != null, has_percent(path));
    }
}

test "percent-decoding agrees with a plain loop" {
    var random = std.Random.DefaultPrng.init(0x3986_2_1);
    const alphabet = "%%%/aF09gz";
    var path_buffer: [80]u8 = undefined;
    var buffer: [80]u8 = undefined;
    for (0..20_000) |_| {
        const path = path_buffer[0..random.random().uintAtMost(usize, path_buffer.len)];
        for (path) |*byte| byte.* = alphabet[random.random().uintLessThan(usize, alphabet.len)];
        const decoded = percent_decode(&buffer, path);
        var expected: [80]u8 = undefined;
        var len: usize = 0;
        var at: usize = 0;
        while (at < path.len) : (len += 1) {
            const hex = if (path[at] == '%' and path.len - at >= 3) path[at + 1 ..][0..2] else "";
            expected[len] = path[at];
            at += 1;
            if (hex.len != 2) continue;
            if (!std.ascii.isHex(hex[0]) or !std.ascii.isHex(hex[1])) continue;
            expected[len] = std.fmt.parseInt(u8, hex, 16) catch unreachable;
            at += 2;
        }
        try testing.expectEqualStrings(expected[0..len], decoded);
    }
}

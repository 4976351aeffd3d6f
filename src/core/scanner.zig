//! Byte classes of HTTP/1.1 and the vector searches over them: the only file that looks at many
//! bytes at once. The searches compare 16 bytes a step with portable vectors (SSE2 and NEON are
//! both baseline), and finish with one overlapping step instead of a loop over the rest.
//!
//! Data: borrows the caller's slices for the call and keeps nothing. Thread: any. GIL: not needed.

const std = @import("std");
const assert = std.debug.assert;

const block_len = 16;
const Block = @Vector(block_len, u8);
const Matches = @Vector(block_len, bool);
const Mask = std.meta.Int(.unsigned, block_len);

/// A piece of the connection's buffer, by offset from its first byte: the buffer may move and
/// grow while a message is still arriving, so that no slice into it can be kept.
pub const Span = struct {
    start: u32 = 0,
    len: u32 = 0,

    /// The bytes; they live as long as the buffer does.
    pub inline fn of(self: Span, bytes: []const u8) []const u8 {
        return bytes[self.start..][0..self.len];
    }
};

const class_token: u8 = 1;
const class_underscore: u8 = 2;

/// RFC 9110 5.6.2: tchar. The underscore has a bit of its own, because field names that hold one
/// cannot be told apart from those with a hyphen once they are CGI names (RFC 3875 4.1.18).
const classes: [256]u8 = blk: {
    var table: [256]u8 = @splat(0);
    for ('a'..'z' + 1) |byte| table[byte] = class_token;
    for ('A'..'Z' + 1) |byte| table[byte] = class_token;
    for ('0'..'9' + 1) |byte| table[byte] = class_token;
    for ("!#$%&'*+-.^_`|~") |byte| table[byte] = class_token;
    table['_'] |= class_underscore;
    break :blk table;
};

pub const TokenKind = enum { not_token, plain, underscored };

pub inline fn is_token_byte(byte: u8) bool {
    return classes[byte] & class_token != 0;
}

/// RFC 9110 5.6.2: token = 1*tchar.
pub fn is_token(bytes: []const u8) bool {
    return token_kind(bytes) != .not_token;
}

/// Like is_token, and says whether the token has an underscore, in the same pass.
pub fn token_kind(bytes: []const u8) TokenKind {
    if (bytes.len == 0) return .not_token;
    var all: u8 = class_token;
    var any: u8 = 0;
    for (bytes) |byte| {
        all &= classes[byte];
        any |= classes[byte];
    }
    if (all & class_token == 0) return .not_token;
    return if (any & class_underscore != 0) .underscored else .plain;
}

/// RFC 9110 5.6.3: OWS is spaces and tabs.
pub inline fn is_whitespace(byte: u8) bool {
    return byte == ' ' or byte == '\t';
}

/// RFC 9110 5.5: what may not stand in a field value: every control but HTAB, and DEL.
/// obs-text (0x80 to 0xff) may.
pub inline fn is_control(byte: u8) bool {
    return (byte < 0x20 and byte != '\t') or byte == 0x7f;
}

pub inline fn is_digit(byte: u8) bool {
    return byte -% '0' < 10;
}

pub inline fn is_alphabetic(byte: u8) bool {
    return (byte | 0x20) -% 'a' < 26;
}

pub inline fn hex_value(byte: u8) ?u4 {
    return switch (byte) {
        '0'...'9' => @intCast(byte - '0'),
        'a'...'f' => @intCast(byte - 'a' + 10),
        'A'...'F' => @intCast(byte - 'A' + 10),
        else => null,
    };
}

/// `bytes` without the whitespace round it. The result borrows from `bytes`.
pub fn trim_whitespace(bytes: []const u8) []const u8 {
    var start: usize = 0;
    var end = bytes.len;
    while (start < end and is_whitespace(bytes[start])) start += 1;
    while (end > start and is_whitespace(bytes[end - 1])) end -= 1;
    return bytes[start..end];
}

/// ASCII comparison without case; `lower` is lower-case already.
pub fn equals_ignoring_case(bytes: []const u8, comptime lower: []const u8) bool {
    if (bytes.len != lower.len) return false;
    var difference: u8 = 0;
    inline for (lower, 0..) |expected, index| {
        comptime assert(!std.ascii.isUpper(expected));
        // Only letters are folded: elsewhere 0x20 would make two different bytes equal.
        const fold: u8 = if (comptime std.ascii.isLower(expected)) 0x20 else 0;
        difference |= (bytes[index] | fold) ^ expected;
    }
    return difference == 0;
}

/// Index of the first control byte (see is_control) at or after `from`; bytes.len when none.
pub fn find_control(bytes: []const u8, from: usize) usize {
    return find(ControlMatcher{}, bytes, from);
}

/// Index of the first byte at or after `from` that may not stand in a request target: controls,
/// space, DEL, bytes above ASCII and '#'; bytes.len when none.
pub fn find_target_end(bytes: []const u8, from: usize) usize {
    return find(TargetEndMatcher{}, bytes, from);
}

/// Index of the first `needle` at or after `from`; bytes.len when none.
pub fn find_byte(bytes: []const u8, from: usize, comptime needle: u8) usize {
    return find(ByteMatcher(needle){}, bytes, from);
}

const ControlMatcher = struct {
    inline fn block(_: ControlMatcher, bytes: Block) Matches {
        const low = bytes < @as(Block, @splat(0x20));
        const tab = bytes == @as(Block, @splat('\t'));
        return (low & ~tab) | (bytes == @as(Block, @splat(0x7f)));
    }
    inline fn single(_: ControlMatcher, byte: u8) bool {
        return is_control(byte);
    }
};

const TargetEndMatcher = struct {
    inline fn block(_: TargetEndMatcher, bytes: Block) Matches {
        // 0x21 to 0x7e become 0 to 0x5d: one unsigned comparison refuses both ends.
        const shifted = bytes -% @as(Block, @splat(0x21));
        const outside = shifted > @as(Block, @splat(0x7e - 0x21));
        return outside | (bytes == @as(Block, @splat('#')));
    }
    inline fn single(_: TargetEndMatcher, byte: u8) bool {
        return byte <= 0x20 or byte >= 0x7f or byte == '#';
    }
};

fn ByteMatcher(comptime needle: u8) type {
    return struct {
        inline fn block(_: @This(), bytes: Block) Matches {
            return bytes == @as(Block, @splat(needle));
        }
        inline fn single(_: @This(), byte: u8) bool {
            return byte == needle;
        }
    };
}

inline fn find(matcher: anytype, bytes: []const u8, from: usize) usize {
    assert(from <= bytes.len);
    var at = from;
    while (bytes.len - at >= block_len) : (at += block_len) {
        const mask: Mask = @bitCast(matcher.block(bytes[at..][0..block_len].*));
        if (mask != 0) return at + @ctz(mask);
    }
    if (at == bytes.len) return at;
    if (bytes.len >= block_len) {
        // The last block reaches back over bytes already seen; they are shifted out.
        const start = bytes.len - block_len;
        const seen: std.math.Log2Int(Mask) = @intCast(at - start);
        const mask: Mask = @bitCast(matcher.block(bytes[start..][0..block_len].*));
        const rest = mask >> seen;
        return if (rest != 0) at + @ctz(rest) else bytes.len;
    }
    while (at < bytes.len) : (at += 1) {
        if (matcher.single(bytes[at])) return at;
    }
    return bytes.len;
}

const testing = std.testing;

test "tokens are RFC 9110 5.6.2's" {
    const delimiters = "\"(),/:;<=>?@[\\]{}";
    for (0..256) |value| {
        const byte: u8 = @intCast(value);
        const visible = byte > 0x20 and byte < 0x7f;
        const delimiter = std.mem.indexOfScalar(u8, delimiters, byte) != null;
        try testing.expectEqual(visible and !delimiter, is_token_byte(byte));
    }
    try testing.expect(!is_token(""));
    try testing.expect(is_token("X-Y"));
    try testing.expectEqual(TokenKind.plain, token_kind("X-Y"));
    try testing.expectEqual(TokenKind.underscored, token_kind("X_Y"));
    try testing.expectEqual(TokenKind.not_token, token_kind("X_Y "));
}

test "small classes agree with std.ascii" {
    for (0..256) |value| {
        const byte: u8 = @intCast(value);
        const control = std.ascii.isControl(byte) and byte != '\t';
        try testing.expectEqual(control, is_control(byte));
        try testing.expectEqual(std.ascii.isDigit(byte), is_digit(byte));
        try testing.expectEqual(std.ascii.isAlphabetic(byte), is_alphabetic(byte));
        try testing.expectEqual(std.ascii.isHex(byte), hex_value(byte) != null);
    }
    try testing.expectEqual(@as(?u4, 0), hex_value('0'));
    try testing.expectEqual(@as(?u4, 15), hex_value('F'));
    try testing.expectEqual(@as(?u4, 10), hex_value('a'));
}

test "whitespace is trimmed on both sides" {
    try testing.expectEqualStrings("", trim_whitespace(""));
    try testing.expectEqualStrings("", trim_whitespace(" \t "));
    try testing.expectEqualStrings("a b", trim_whitespace("\t a b\t "));
    try testing.expectEqualStrings("\x0ba", trim_whitespace(" \x0ba"));
}

test "comparison without case folds letters alone" {
    try testing.expect(equals_ignoring_case("Keep-ALIVE", "keep-alive"));
    try testing.expect(!equals_ignoring_case("keep\ralive", "keep-alive"));
    try testing.expect(!equals_ignoring_case("keep-alive ", "keep-alive"));
    try testing.expect(!equals_ignoring_case("1\x1000-continue", "100-continue"));
}

test "searches agree with a plain loop at every offset and length" {
    const interesting = "\x00\t\n\r\x1f !#:?%A~\x7f\x80\xff";
    var bytes: [70]u8 = undefined;
    for (interesting) |byte| {
        for (0..bytes.len) |position| {
            @memset(&bytes, 'a');
            bytes[position] = byte;
            for ([_]usize{ 1, 5, 15, 16, 17, 31, 32, 33, 47, 70 }) |len| {
                for ([_]usize{ 0, 1, 3, 15, 16, 17, 40 }) |from| {
                    if (from > len) continue;
                    try expect_searches(bytes[0..len], from);
                }
            }
        }
    }
    try testing.expectEqual(0, find_control("", 0));
}

fn expect_searches(bytes: []const u8, from: usize) !void {
    try testing.expectEqual(slow(ControlMatcher{}, bytes, from), find_control(bytes, from));
    try testing.expectEqual(slow(TargetEndMatcher{}, bytes, from), find_target_end(bytes, from));
    try testing.expectEqual(slow(ByteMatcher(':'){}, bytes, from), find_byte(bytes, from, ':'));
}

fn slow(matcher: anytype, bytes: []const u8, from: usize) usize {
    for (bytes[from..], from..) |byte, index| {
        if (matcher.single(byte)) return index;
    }
    return bytes.len;
}

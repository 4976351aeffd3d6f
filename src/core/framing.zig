//! How the length of a request body is known (RFC 9112 6.3): the facts that the field lines give,
//! gathered one line at a time, and one pure function from them to the framing. Whatever could be
//! read in two ways is refused, since that is what request smuggling (RFC 9112 11.2) lives on.
//!
//! Data: a small value owned by the request head. Thread: any. GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");

pub const Version = enum(u8) { http_1_0, http_1_1 };

pub const Framing = union(enum) {
    /// Neither field was sent: there is no body.
    none,
    /// At most content_length_max.
    content_length: u64,
    chunked,
};

pub const ContentLength = union(enum) {
    absent,
    bytes: u64,
    /// Not just digits, or too great.
    malformed,
    /// More than one field line, be they equal.
    repeated,
};

pub const TransferEncoding = enum {
    absent,
    /// One field line whose only coding is "chunked".
    chunked,
    /// A list of codings that is anything else.
    unsupported,
    /// No list of codings.
    malformed,
};

pub const Facts = struct {
    version: Version = .http_1_1,
    content_length: ContentLength = .absent,
    transfer_encoding: TransferEncoding = .absent,

    /// Takes in the value of a Content-Length field line.
    pub fn note_content_length(self: *Facts, value: []const u8) void {
        self.content_length = switch (self.content_length) {
            .absent => if (parse_content_length(value)) |bytes|
                .{ .bytes = bytes }
            else
                .malformed,
            .malformed => .malformed,
            .bytes, .repeated => .repeated,
        };
    }

    /// Takes in the value of a Transfer-Encoding field line.
    pub fn note_transfer_encoding(self: *Facts, value: []const u8) void {
        const line = parse_transfer_encoding(value);
        self.transfer_encoding = switch (self.transfer_encoding) {
            .absent => line,
            .malformed => .malformed,
            .chunked, .unsupported => if (line == .malformed) .malformed else .unsupported,
        };
    }
};

pub const Error = error{
    BadContentLength,
    DuplicateContentLength,
    BadTransferEncoding,
    UnsupportedTransferCoding,
    ConflictingFraming,
};

/// Lengths that fit 63 bits: file offsets and Python's ssize_t are signed.
pub const content_length_max = std.math.maxInt(i64);

/// The framing of a request. The order of the checks matters to the answer alone: what is
/// malformed or ambiguous is 400, a coding that is merely unknown 501 (RFC 9112 6.1).
pub fn determine(facts: Facts) Error!Framing {
    switch (facts.content_length) {
        .malformed => return error.BadContentLength,
        .repeated => return error.DuplicateContentLength,
        .absent, .bytes => {},
    }
    if (facts.transfer_encoding == .absent) {
        return switch (facts.content_length) {
            .bytes => |bytes| .{ .content_length = bytes },
            .absent, .malformed, .repeated => .none,
        };
    }
    // RFC 9112 6.3 lets a server prefer Transfer-Encoding; it ought to be an attack, though.
    if (facts.content_length != .absent) return error.ConflictingFraming;
    // RFC 9112 6.1: in HTTP/1.0 its framing is faulty.
    if (facts.version == .http_1_0) return error.BadTransferEncoding;
    return switch (facts.transfer_encoding) {
        .chunked => .chunked,
        .malformed => error.BadTransferEncoding,
        .unsupported => error.UnsupportedTransferCoding,
        .absent => .none,
    };
}

/// RFC 9110 8.6: 1*DIGIT and nothing else. The list that the RFC allows to be repaired is not.
fn parse_content_length(value: []const u8) ?u64 {
    if (value.len == 0) return null;
    var bytes: u64 = 0;
    for (value) |byte| {
        if (!scanner.is_digit(byte)) return null;
        const digit: u64 = byte - '0';
        if (bytes > (content_length_max - digit) / 10) return null;
        bytes = bytes * 10 + digit;
    }
    return bytes;
}

/// RFC 9112 6.1 and 7: #transfer-coding. Empty list elements are malformed here.
fn parse_transfer_encoding(value: []const u8) TransferEncoding {
    const whole = scanner.trim_whitespace(value);
    if (scanner.equals_ignoring_case(whole, "chunked")) return .chunked;
    var list: CodingList = .{ .text = whole };
    while (true) {
        if (!list.skip_coding()) return .malformed;
        if (list.at == whole.len) return .unsupported;
        if (!list.skip(',')) return .malformed;
    }
}

/// transfer-coding = token *( OWS ";" OWS token [ BWS "=" BWS ( token / quoted-string ) ] )
const CodingList = struct {
    text: []const u8,
    at: usize = 0,

    /// False when there is no coding here. Skips whitespace round it, too.
    fn skip_coding(self: *CodingList) bool {
        self.skip_whitespace();
        if (!self.skip_token()) return false;
        self.skip_whitespace();
        while (self.skip(';')) {
            self.skip_whitespace();
            if (!self.skip_token()) return false;
            self.skip_whitespace();
            if (self.skip('=')) {
                self.skip_whitespace();
                if (!self.skip_token() and !self.skip_quoted()) return false;
                self.skip_whitespace();
            }
        }
        return true;
    }

    fn skip(self: *CodingList, byte: u8) bool {
        if (self.at == self.text.len or self.text[self.at] != byte) return false;
        self.at += 1;
        return true;
    }

    fn skip_whitespace(self: *CodingList) void {
        while (self.at < self.text.len and scanner.is_whitespace(self.text[self.at])) {
            self.at += 1;
        }
    }

    fn skip_token(self: *CodingList) bool {
        const start = self.at;
        while (self.at < self.text.len and scanner.is_token_byte(self.text[self.at])) {
            self.at += 1;
        }
        return self.at > start;
    }

    fn skip_quoted(self: *CodingList) bool {
        if (!self.skip('"')) return false;
        while (self.at < self.text.len) {
            const byte = self.text[self.at];
            self.at += 1;
            if (byte == '"') return true;
            if (byte == '\\') {
                if (self.at == self.text.len) return false;
                self.at += 1;
            }
        }
        return false;
    }
};

const testing = std.testing;

fn facts_of(version: Version, lengths: []const []const u8, codings: []const []const u8) Facts {
    var facts: Facts = .{ .version = version };
    for (lengths) |value| facts.note_content_length(value);
    for (codings) |value| facts.note_transfer_encoding(value);
    return facts;
}

fn expect_framing(expected: Framing, facts: Facts) !void {
    try testing.expectEqual(expected, try determine(facts));
}

fn expect_refused(expected: Error, facts: Facts) !void {
    try testing.expectError(expected, determine(facts));
}

test "no field: no body" {
    try expect_framing(.none, facts_of(.http_1_1, &.{}, &.{}));
    try expect_framing(.none, facts_of(.http_1_0, &.{}, &.{}));
}

test "a content length" {
    try expect_framing(.{ .content_length = 5 }, facts_of(.http_1_1, &.{"5"}, &.{}));
    try expect_framing(.{ .content_length = 5 }, facts_of(.http_1_0, &.{"5"}, &.{}));
    try expect_framing(.{ .content_length = 0 }, facts_of(.http_1_1, &.{"0"}, &.{}));
    try expect_framing(.{ .content_length = 7 }, facts_of(.http_1_1, &.{"0007"}, &.{}));
}

test "the greatest content length, and one more" {
    const greatest: Framing = .{ .content_length = content_length_max };
    try expect_framing(greatest, facts_of(.http_1_1, &.{"9223372036854775807"}, &.{}));
    inline for (.{
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999999999999999999",
    }) |value| {
        try expect_refused(error.BadContentLength, facts_of(.http_1_1, &.{value}, &.{}));
    }
}

test "leading zeros neither overflow nor count" {
    const value = "0" ** 200 ++ "12";
    try expect_framing(.{ .content_length = 12 }, facts_of(.http_1_1, &.{value}, &.{}));
}

test "content lengths that are not just digits" {
    inline for (.{
        "", "+5", "-5", "5_0", "0x5", "5, 5", "5,5", "5 5", " 5", "5.0", "5e1", "five", "5;",
    }) |value| {
        errdefer std.debug.print("accepted: '{s}'\n", .{value});
        try expect_refused(error.BadContentLength, facts_of(.http_1_1, &.{value}, &.{}));
    }
}

test "repeated content length, equal or not" {
    try expect_refused(error.DuplicateContentLength, facts_of(.http_1_1, &.{ "5", "5" }, &.{}));
    try expect_refused(error.DuplicateContentLength, facts_of(.http_1_1, &.{ "5", "6" }, &.{}));
    try expect_refused(error.DuplicateContentLength, facts_of(.http_1_0, &.{ "5", "x" }, &.{}));
    try expect_refused(error.BadContentLength, facts_of(.http_1_1, &.{ "x", "5" }, &.{}));
}

test "chunked, in any case and with whitespace round it" {
    inline for (.{ "chunked", "Chunked", "CHUNKED", " chunked\t" }) |value| {
        try expect_framing(.chunked, facts_of(.http_1_1, &.{}, &.{value}));
    }
}

test "other codings are unsupported" {
    inline for (.{
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked,chunked",
        "chunked, identity",
        "xchunked",
        "chunkedx",
        "chunked;param",
        "chunked;a=b",
        "chunked ; a = \"b, \\\" c\" , gzip",
    }) |value| {
        errdefer std.debug.print("at: '{s}'\n", .{value});
        try expect_refused(error.UnsupportedTransferCoding, facts_of(.http_1_1, &.{}, &.{value}));
    }
}

test "what is no list of codings is malformed" {
    inline for (.{
        "",            ",",           "chunked,",    ",chunked",       "chunked,,gzip", "chu nked",
        "\"chunked\"", "chunked;",    "chunked;=a",  "chunked;a=",     "chunked;a=\"b", "[chunked]",
        "chunked\x0b", "\x0bchunked", "chunked\xa0", "chunked;a=\"\\", "chunked/",      "=",
    }) |value| {
        errdefer std.debug.print("at: '{s}'\n", .{value});
        try expect_refused(error.BadTransferEncoding, facts_of(.http_1_1, &.{}, &.{value}));
    }
}

test "split chunked then identity is refused" {
    const chunked_identity = facts_of(.http_1_1, &.{}, &.{ "chunked", "identity" });
    try expect_refused(error.UnsupportedTransferCoding, chunked_identity);
    const identity_chunked = facts_of(.http_1_1, &.{}, &.{ "identity", "chunked" });
    try expect_refused(error.UnsupportedTransferCoding, identity_chunked);
}

test "repeated chunked is refused" {
    const twice = facts_of(.http_1_1, &.{}, &.{ "chunked", "chunked" });
    try expect_refused(error.UnsupportedTransferCoding, twice);
}

test "one malformed field line makes the list malformed" {
    const second = facts_of(.http_1_1, &.{}, &.{ "chunked", "" });
    try expect_refused(error.BadTransferEncoding, second);
    const first = facts_of(.http_1_1, &.{}, &.{ ",", "chunked" });
    try expect_refused(error.BadTransferEncoding, first);
}

test "transfer encoding in HTTP/1.0 is faulty" {
    inline for (.{ "chunked", "gzip", "" }) |value| {
        try expect_refused(error.BadTransferEncoding, facts_of(.http_1_0, &.{}, &.{value}));
    }
}

test "both fields conflict, whichever comes first or however the coding reads" {
    inline for (.{ "chunked", "gzip", "", "identity" }) |value| {
        const facts = facts_of(.http_1_1, &.{"5"}, &.{value});
        try expect_refused(error.ConflictingFraming, facts);
    }
    try expect_refused(error.ConflictingFraming, facts_of(.http_1_0, &.{"0"}, &.{"chunked"}));
}

test "a faulty length is refused whatever the coding" {
    try expect_refused(error.BadContentLength, facts_of(.http_1_1, &.{"x"}, &.{"chunked"}));
    const repeated = facts_of(.http_1_1, &.{ "1", "1" }, &.{"chunked"});
    try expect_refused(error.DuplicateContentLength, repeated);
}

test "every combination of facts is decided" {
    const lengths = [_]ContentLength{ .absent, .{ .bytes = 1 }, .malformed, .repeated };
    var accepted: usize = 0;
    for (std.enums.values(Version)) |version| {
        for (lengths) |length| {
            for (std.enums.values(TransferEncoding)) |coding| {
                _ = determine(.{
                    .version = version,
                    .content_length = length,
                    .transfer_encoding = coding,
                }) catch continue;
                accepted += 1;
            }
        }
    }
    // None and a length in both versions, chunked in HTTP/1.1.
    try testing.expectEqual(5, accepted);
}

//! Parser of request heads (RFC 9112 2 to 5): request line, field lines and what they say about
//! the connection and the body. It resumes where the bytes ended, looks at no byte twice before
//! its line is complete, and parses a line as soon as its CRLF is there. It repairs nothing: what
//! could be read in two ways is an error, and an error is final.
//!
//! Data: spans into the connection's buffer, field lines in storage that the caller hands over.
//! Thread: whichever owns the connection. GIL: not needed.

const std = @import("std");
const assert = std.debug.assert;
const fields = @import("fields.zig");
const framing = @import("framing.zig");
const host = @import("host.zig");
const scanner = @import("scanner.zig");
const target_forms = @import("target.zig");
const Elements = @import("field_values.zig").Elements;

pub const Span = scanner.Span;
pub const Version = framing.Version;

pub const Limits = struct {
    /// Without its CRLF. More is 414.
    request_line_bytes_max: u32,
    /// Request line, field lines and all their CRLFs, the last one and a leading empty line
    /// included. More is 431.
    head_bytes_max: u32,
    /// The storage given to init bounds them, too. More is 431.
    field_lines_max: u16,
};

pub const FieldLine = struct {
    name: Span,
    /// Without the whitespace round it.
    value: Span,
    known: fields.Name,

    comptime {
        // A connection's storage holds one for each field line it allows.
        assert(@sizeOf(FieldLine) <= 20);
    }
};

pub const Expect = enum(u8) { none, continue_100 };

pub const Error = error{
    BadRequestLine,
    BadMethod,
    BadTarget,
    RequestLineTooLong,
    UnsupportedVersion,
    HeadTooLarge,
    TooManyFields,
    BadFieldLine,
    BadFieldName,
    ObsoleteFolding,
    BareCarriageReturn,
    BareLineFeed,
    ControlCharacter,
    MissingHost,
    DuplicateHost,
    BadHost,
    ExpectationFailed,
} || framing.Error;

/// The status code that answers a request refused for this (RFC 9110 15.5 and 15.6).
pub fn status_of(err: Error) u16 {
    return switch (err) {
        error.RequestLineTooLong => 414,
        error.ExpectationFailed => 417,
        error.HeadTooLarge, error.TooManyFields => 431,
        error.UnsupportedTransferCoding => 501,
        error.UnsupportedVersion => 505,
        error.BadRequestLine,
        error.BadMethod,
        error.BadTarget,
        error.BadFieldLine,
        error.BadFieldName,
        error.ObsoleteFolding,
        error.BareCarriageReturn,
        error.BareLineFeed,
        error.ControlCharacter,
        error.MissingHost,
        error.DuplicateHost,
        error.BadHost,
        error.BadContentLength,
        error.DuplicateContentLength,
        error.BadTransferEncoding,
        error.ConflictingFraming,
        => 400,
    };
}

/// One word for the log and for the metric's label.
pub fn reason_of(err: Error) []const u8 {
    return switch (err) {
        error.BadRequestLine => "bad_request_line",
        error.BadMethod => "bad_method",
        error.BadTarget => "bad_target",
        error.RequestLineTooLong => "request_line_too_long",
        error.UnsupportedVersion => "unsupported_version",
        error.HeadTooLarge => "head_too_large",
        error.TooManyFields => "too_many_fields",
        error.BadFieldLine => "bad_field_line",
        error.BadFieldName => "bad_field_name",
        error.ObsoleteFolding => "obsolete_folding",
        error.BareCarriageReturn => "bare_cr",
        error.BareLineFeed => "bare_lf",
        error.ControlCharacter => "control_character",
        error.MissingHost => "missing_host",
        error.DuplicateHost => "duplicate_host",
        error.BadHost => "bad_host",
        error.ExpectationFailed => "expectation_failed",
        error.BadContentLength => "bad_content_length",
        error.DuplicateContentLength => "duplicate_content_length",
        error.BadTransferEncoding => "bad_transfer_encoding",
        error.UnsupportedTransferCoding => "unsupported_transfer_coding",
        error.ConflictingFraming => "conflicting_framing",
    };
}

const State = enum(u8) {
    /// Nothing parsed yet; one empty line may come (RFC 9112 2.2).
    start,
    /// The request line is next, and no empty line any more.
    request_line,
    /// A field line is next, or the empty line that ends the head.
    field_line,
    complete,
    /// Poisoned: parse repeats `failure`.
    failed,
};

pub const RequestHead = struct {
    // What was parsed. Valid once parse has returned true; `method` and `target` already when
    // their spans are not empty, for the log of a request that was refused later.
    method: Span = .{},
    target: Span = .{},
    target_form: target_forms.Form = .origin_form,
    version: Version = .http_1_1,
    /// The target's path as sent; empty for `*`, for CONNECT and for "http://host".
    path: Span = .{},
    query: Span = .{},
    has_query: bool = false,
    /// The target's authority when it has one, else the value of Host; empty without either.
    authority: Span = .{},
    /// The whole head, a leading empty line and the last CRLF included: the body begins here.
    head_bytes: u32 = 0,
    /// RFC 9112 9.3.
    persistent: bool = false,
    expect: Expect = .none,
    framing: framing.Framing = .none,
    /// The caller's storage; lines() gives the part in use.
    field_lines: []FieldLine,
    field_count: u16 = 0,

    // Where to go on.
    state: State = .start,
    /// First byte of the line that is being read.
    line_start: u32 = 0,
    /// Every byte before this one has been seen to be none that ends a line.
    scanned: u32 = 0,
    failure: Error = error.BadRequestLine,

    // What field lines have said so far.
    host_value: Span = .{},
    host_seen: bool = false,
    connection_close: bool = false,
    connection_keep_alive: bool = false,
    unknown_expectation: bool = false,
    length_fields: bool = false,
    facts: framing.Facts = .{},

    /// `storage` stays the caller's and must outlive the head.
    pub fn init(storage: []FieldLine) RequestHead {
        return .{ .field_lines = storage };
    }

    /// Ready for the next request, which begins at the first byte of the buffer.
    pub fn reset(self: *RequestHead) void {
        self.* = .init(self.field_lines);
    }

    /// The field lines, in the order in which they came.
    pub fn lines(self: *const RequestHead) []const FieldLine {
        return self.field_lines[0..self.field_count];
    }

    /// Whether nothing of a request has come yet, but perhaps an empty line before it.
    pub fn is_idle(self: *const RequestHead) bool {
        return self.scanned == self.line_start and
            (self.state == .start or self.state == .request_line);
    }

    /// Whether `version` is what the client said.
    pub fn has_version(self: *const RequestHead) bool {
        return switch (self.state) {
            .start, .request_line => false,
            .field_line, .complete => true,
            .failed => self.failure != error.BadRequestLine and
                self.failure != error.UnsupportedVersion,
        };
    }

    /// After `reset`: the empty line that may come has been there already.
    pub fn begin_after_empty_line(self: *RequestHead) void {
        self.state = .request_line;
    }

    /// Whether parse has returned true.
    pub fn is_complete(self: *const RequestHead) bool {
        return self.state == .complete;
    }

    /// Goes on with `bytes`, which begin with the same bytes as in the call before, under the same
    /// limits. True when the head is complete: what follows its `head_bytes` has not been looked
    /// at.
    pub fn parse(self: *RequestHead, bytes: []const u8, limits: Limits) Error!bool {
        return self.advance(bytes, limits) catch |err| {
            self.state = .failed;
            self.failure = err;
            return err;
        };
    }

    fn advance(self: *RequestHead, bytes: []const u8, limits: Limits) Error!bool {
        // What is past the limit is never looked at, so that the same bytes have the same
        // verdict however they are split.
        const visible = bytes[0..@min(bytes.len, limits.head_bytes_max)];
        while (try self.next_line(visible, limits)) {
            if (self.state == .complete) return true;
        }
        if (visible.len == limits.head_bytes_max) return error.HeadTooLarge;
        return false;
    }

    /// Parses one line. False when its end has not come.
    inline fn next_line(self: *RequestHead, visible: []const u8, limits: Limits) Error!bool {
        switch (self.state) {
            .start, .request_line => {},
            .field_line => return self.parse_next_field_line(visible, limits),
            .complete => return true,
            .failed => return self.failure,
        }
        if (self.line_start == visible.len) return false;
        try self.check_request_start(visible);
        if (visible[self.line_start] == '\r') return self.skip_empty_line(visible);
        const end = try self.find_line_end(visible, limits.request_line_bytes_max);
        if (end == no_line_end) return false;
        try self.parse_request_line(visible, end);
        self.begin_line(end + 2);
        self.state = .field_line;
        return true;
    }

    /// The first byte tells a TLS handshake and other noise from a request at once.
    fn check_request_start(self: *const RequestHead, visible: []const u8) Error!void {
        const first = visible[self.line_start];
        if (scanner.is_token_byte(first)) return;
        return switch (first) {
            '\r' => if (self.state == .start) {} else error.BadRequestLine,
            '\n' => error.BareLineFeed,
            ' ', '\t' => error.BadRequestLine,
            else => if (scanner.is_control(first)) error.ControlCharacter else error.BadMethod,
        };
    }

    fn skip_empty_line(self: *RequestHead, visible: []const u8) Error!bool {
        if (visible.len == 1) return false;
        if (visible[1] != '\n') return error.BareCarriageReturn;
        self.begin_line(2);
        self.state = .request_line;
        return true;
    }

    inline fn begin_line(self: *RequestHead, start: u32) void {
        self.line_start = start;
        self.scanned = start;
    }

    /// Index of the CR of the line's CRLF; no_line_end when that has not come.
    inline fn find_line_end(self: *RequestHead, visible: []const u8, bytes_max: u32) Error!u32 {
        // Fits, because what is visible is no longer than head_bytes_max.
        const stop: u32 = @intCast(scanner.find_control(visible, self.scanned));
        self.scanned = stop;
        if (stop - self.line_start > bytes_max) return error.RequestLineTooLong;
        if (stop == visible.len) return no_line_end;
        if (visible[stop] != '\r') {
            return if (visible[stop] == '\n') error.BareLineFeed else error.ControlCharacter;
        }
        if (stop + 1 == visible.len) return no_line_end;
        if (visible[stop + 1] != '\n') return error.BareCarriageReturn;
        return stop;
    }

    /// RFC 9112 3: method SP request-target SP HTTP-version
    fn parse_request_line(self: *RequestHead, visible: []const u8, end: u32) Error!void {
        const line = visible[0..end];
        var at = self.line_start;
        while (at < end and scanner.is_token_byte(line[at])) at += 1;
        if (at == end) return error.BadRequestLine;
        if (line[at] != ' ') return error.BadMethod;
        self.method = .{ .start = self.line_start, .len = at - self.line_start };
        at += 1;

        const target_end: u32 = @intCast(scanner.find_target_end(line, at));
        // Without a version it would be HTTP/0.9's Simple-Request.
        if (target_end == end) return error.BadRequestLine;
        if (line[target_end] != ' ') return error.BadTarget;
        if (target_end == at) return error.BadRequestLine;
        self.target = .{ .start = at, .len = target_end - at };

        self.version = try parse_version(line[target_end + 1 ..]);
        const parts = target_forms.parse(line, self.target, self.method.of(line)) orelse
            return error.BadTarget;
        self.target_form = parts.form;
        self.authority = parts.authority;
        self.path = parts.path;
        self.query = parts.query;
        self.has_query = parts.has_query;
    }

    inline fn parse_next_field_line(
        self: *RequestHead,
        visible: []const u8,
        limits: Limits,
    ) Error!bool {
        const start = self.line_start;
        if (start == visible.len) return false;
        switch (visible[start]) {
            '\r' => {
                if (start + 1 == visible.len) return false;
                if (visible[start + 1] != '\n') return error.BareCarriageReturn;
                try self.finish(visible, start + 2);
                return true;
            },
            // RFC 9112 5.2, and 2.2 for the whitespace before the first field line.
            ' ', '\t' => return error.ObsoleteFolding,
            else => {},
        }
        // Known from the first byte of the line, so it need not end first.
        const line_count_max = @min(limits.field_lines_max, self.field_lines.len);
        if (self.field_count >= line_count_max) return error.TooManyFields;
        const end = try self.find_line_end(visible, std.math.maxInt(u32));
        if (end == no_line_end) return false;
        try self.parse_field_line(visible, end);
        self.begin_line(end + 2);
        return true;
    }

    /// RFC 9112 5: field-name ":" OWS field-value OWS. The value's bytes are known to be good.
    inline fn parse_field_line(self: *RequestHead, visible: []const u8, end: u32) Error!void {
        const line = visible[0..end];
        const colon: u32 = @intCast(scanner.find_byte(line, self.line_start, ':'));
        if (colon == end) return error.BadFieldLine;
        const name: Span = .{ .start = self.line_start, .len = colon - self.line_start };
        const known = fields.classify(name.of(line)) orelse return error.BadFieldName;

        var value_start = colon + 1;
        while (value_start < end and scanner.is_whitespace(line[value_start])) value_start += 1;
        var value_end = end;
        while (value_end > value_start and scanner.is_whitespace(line[value_end - 1])) {
            value_end -= 1;
        }
        const value: Span = .{ .start = value_start, .len = value_end - value_start };
        self.field_lines[self.field_count] = .{ .name = name, .value = value, .known = known };
        self.field_count += 1;
        switch (known) {
            .host => try self.note_host(value, line),
            .connection => self.note_connection(value.of(line)),
            .content_length => {
                self.length_fields = true;
                self.facts.note_content_length(value.of(line));
            },
            .transfer_encoding => {
                self.length_fields = true;
                self.facts.note_transfer_encoding(value.of(line));
            },
            .expect => self.note_expect(value.of(line)),
            else => {},
        }
    }

    /// RFC 9112 3.2: one Host field line at most, and its value must be valid.
    fn note_host(self: *RequestHead, value: Span, line: []const u8) Error!void {
        if (self.host_seen) return error.DuplicateHost;
        self.host_seen = true;
        if (!host.valid(value.of(line))) return error.BadHost;
        self.host_value = value;
    }

    /// RFC 9110 7.6.1: a list of options without case; several field lines make one list.
    fn note_connection(self: *RequestHead, value: []const u8) void {
        if (self.note_connection_option(value)) return;
        var rest = value;
        while (rest.len > 0) {
            const comma = scanner.find_byte(rest, 0, ',');
            _ = self.note_connection_option(scanner.trim_whitespace(rest[0..comma]));
            if (comma == rest.len) return;
            rest = rest[comma + 1 ..];
        }
    }

    fn note_connection_option(self: *RequestHead, option: []const u8) bool {
        if (scanner.equals_ignoring_case(option, "keep-alive")) {
            self.connection_keep_alive = true;
            return true;
        }
        if (scanner.equals_ignoring_case(option, "close")) {
            self.connection_close = true;
            return true;
        }
        return false;
    }

    /// RFC 9110 10.1.1: a list, in which empty elements count for nothing (5.6.1.2), with one
    /// expectation that is known.
    fn note_expect(self: *RequestHead, value: []const u8) void {
        var elements: Elements = .{ .rest = value };
        const expectation = elements.next() orelse return;
        const is_known = scanner.equals_ignoring_case(expectation, "100-continue");
        if (is_known and elements.next() == null) {
            self.expect = .continue_100;
        } else {
            self.unknown_expectation = true;
        }
    }

    /// What only the whole head can tell.
    fn finish(self: *RequestHead, visible: []const u8, end: u32) Error!void {
        assert(end <= visible.len);
        switch (self.version) {
            .http_1_1 => {
                // RFC 9112 3.2: also when the target has an authority of its own.
                if (!self.host_seen) return error.MissingHost;
                self.persistent = !self.connection_close;
            },
            .http_1_0 => {
                self.persistent = self.connection_keep_alive and !self.connection_close;
                // RFC 9110 10.1.1: such a client does not know interim responses.
                self.expect = .none;
            },
        }
        // RFC 9112 3.2.2: the target's authority replaces what Host says.
        if (self.authority.len == 0) self.authority = self.host_value;
        if (self.length_fields) {
            self.facts.version = self.version;
            self.framing = try framing.determine(self.facts);
        }
        // Last, so that what is malformed is never answered with 417.
        if (self.unknown_expectation) return error.ExpectationFailed;
        self.head_bytes = end;
        self.state = .complete;
    }
};

const no_line_end = std.math.maxInt(u32);

/// RFC 9112 2.3: "HTTP/" DIGIT "." DIGIT, with case. A minor version above 1 is read as 1.1
/// (RFC 9110 6.2), another major one is not ours.
inline fn parse_version(text: []const u8) Error!Version {
    if (text.len != 8) return error.BadRequestLine;
    if (std.mem.readInt(u64, text[0..8], .little) == http_1_1_word) return .http_1_1;
    if (!std.mem.eql(u8, text[0..5], "HTTP/") or text[6] != '.') return error.BadRequestLine;
    if (!scanner.is_digit(text[5]) or !scanner.is_digit(text[7])) return error.BadRequestLine;
    if (text[5] != '1') return error.UnsupportedVersion;
    return if (text[7] == '0') .http_1_0 else .http_1_1;
}

const http_1_1_word = std.mem.readInt(u64, "HTTP/1.1", .little);

const testing = std.testing;

const test_limits: Limits = .{
    .request_line_bytes_max = 8192,
    .head_bytes_max = 65536,
    .field_lines_max = 100,
};

/// A parsed head, or the error that it gave, with storage of its own.
const Parsed = struct {
    storage: [128]FieldLine = undefined,
    head: RequestHead = undefined,
    complete: bool = false,
    failure: ?Error = null,

    /// Gives `text` in steps that end where `step` says; each from a buffer of its own, since
    /// the connection's buffer may move.
    fn run(self: *Parsed, text: []const u8, limits: Limits, step: Step) void {
        self.head = .init(&self.storage);
        self.complete = false;
        self.failure = null;
        var buffers: [2][2048]u8 = undefined;
        var which: usize = 0;
        var end: usize = 0;
        while (true) {
            end = @min(text.len, end + step.next());
            var bytes = text[0..end];
            if (end <= buffers[which].len) {
                @memset(&buffers[1 - which], 0);
                @memcpy(buffers[which][0..end], bytes);
                bytes = buffers[which][0..end];
                which = 1 - which;
            }
            self.complete = self.head.parse(bytes, limits) catch |err| {
                self.failure = err;
                return;
            };
            if (self.complete or end == text.len) return;
        }
    }

    fn reason(self: *const Parsed) []const u8 {
        return if (self.failure) |err| reason_of(err) else "";
    }
};

const Step = union(enum) {
    whole,
    bytes: usize,
    random: std.Random,

    fn next(self: Step) usize {
        return switch (self) {
            .whole => std.math.maxInt(u32),
            .bytes => |bytes| bytes,
            .random => |random| random.intRangeAtMost(usize, 1, 40),
        };
    }
};

/// Parses `text` whole, byte by byte and otherwise split: every time with the same result.
fn parse_text(parsed: *Parsed, text: []const u8, limits: Limits) !void {
    parsed.run(text, limits, .whole);
    var prng = std.Random.DefaultPrng.init(text.len);
    var other: Parsed = .{};
    for ([_]Step{ .{ .bytes = 1 }, .{ .bytes = 17 }, .{ .random = prng.random() } }) |step| {
        // Quadratic, because each step copies what came before.
        if (text.len > 20_000 and step == .bytes and step.bytes == 1) continue;
        other.run(text, limits, step);
        try testing.expectEqualStrings(parsed.reason(), other.reason());
        if (parsed.failure) |failure| {
            // Poisoned.
            const again = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            try testing.expectError(failure, other.head.parse(again, limits));
            continue;
        }
        try testing.expectEqual(parsed.complete, other.complete);
        if (!parsed.complete) continue;
        try testing.expect(try other.head.parse(text, limits));
        for (parsed.head.lines(), other.head.lines()) |line, other_line| {
            try testing.expectEqual(line, other_line);
        }
        var head = other.head;
        head.field_lines = parsed.head.field_lines;
        try testing.expect(std.meta.eql(parsed.head, head));
    }
}

fn expect_complete(parsed: *Parsed, text: []const u8) !void {
    errdefer std.debug.print("at: {f}\n", .{std.ascii.hexEscape(text, .lower)});
    try parse_text(parsed, text, test_limits);
    try testing.expectEqualStrings("", parsed.reason());
    try testing.expect(parsed.complete);
}

fn expect_refused(failure: Error, text: []const u8) !void {
    try expect_refused_within(failure, text, test_limits);
}

fn expect_refused_within(failure: Error, text: []const u8, limits: Limits) !void {
    errdefer std.debug.print("at: {f}\n", .{std.ascii.hexEscape(text, .lower)});
    var parsed: Parsed = .{};
    try parse_text(&parsed, text, limits);
    try testing.expectEqualStrings(reason_of(failure), parsed.reason());
}

/// With the request line and the Host that a request needs round the field lines given.
fn expect_fields_refused(failure: Error, comptime field_lines: []const u8) !void {
    try expect_refused(failure, "GET / HTTP/1.1\r\nHost: a\r\n" ++ field_lines ++ "\r\n");
}

fn expect_fields(parsed: *Parsed, comptime field_lines: []const u8) !void {
    try expect_complete(parsed, "GET / HTTP/1.1\r\nHost: a\r\n" ++ field_lines ++ "\r\n");
}

test "a request with everything in its place" {
    const text = "POST /a%20b/c?d=e&f HTTP/1.1\r\nHost: example.org:80\r\n" ++
        "User-Agent: \t a b\t \r\nX-Custom:c\r\nX_Under: d\r\nAccept:\r\n" ++
        "content-LENGTH: 12\r\n\r\n";
    var parsed: Parsed = .{};
    try expect_complete(&parsed, text ++ "hello, world");
    const head = &parsed.head;
    try testing.expectEqualStrings("POST", head.method.of(text));
    try testing.expectEqualStrings("/a%20b/c?d=e&f", head.target.of(text));
    try testing.expectEqual(target_forms.Form.origin_form, head.target_form);
    try testing.expectEqualStrings("/a%20b/c", head.path.of(text));
    try testing.expectEqualStrings("d=e&f", head.query.of(text));
    try testing.expect(head.has_query);
    try testing.expectEqual(Version.http_1_1, head.version);
    try testing.expectEqualStrings("example.org:80", head.authority.of(text));
    try testing.expectEqual(text.len, head.head_bytes);
    try testing.expect(head.persistent);
    try testing.expectEqual(Expect.none, head.expect);
    try testing.expectEqual(framing.Framing{ .content_length = 12 }, head.framing);

    const expected = [_]struct { []const u8, []const u8, fields.Name }{
        .{ "Host", "example.org:80", .host },
        .{ "User-Agent", "a b", .user_agent },
        .{ "X-Custom", "c", .other },
        .{ "X_Under", "d", .underscored },
        .{ "Accept", "", .accept },
        .{ "content-LENGTH", "12", .content_length },
    };
    try testing.expectEqual(expected.len, head.lines().len);
    for (expected, head.lines()) |line, actual| {
        try testing.expectEqualStrings(line[0], actual.name.of(text));
        try testing.expectEqualStrings(line[1], actual.value.of(text));
        try testing.expectEqual(line[2], actual.known);
    }
}

test "a head of which some is missing is not complete" {
    const text = "\r\nGET /a?b HTTP/1.1\r\nHost: a\r\nX-A:  b \r\n\r\n";
    var parsed: Parsed = .{};
    for (0..text.len) |len| {
        try parse_text(&parsed, text[0..len], test_limits);
        try testing.expectEqual(null, parsed.failure);
        try testing.expect(!parsed.complete);
        try testing.expectEqual(len <= 2, parsed.head.is_idle());
    }
    try expect_complete(&parsed, text);
}

test "pipelined requests are parsed one after the other" {
    const first = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
    const second = "HEAD /2 HTTP/1.0\r\n\r\n";
    const text = first ++ second ++ "\x00 not looked at";
    var storage: [4]FieldLine = undefined;
    var head: RequestHead = .init(&storage);
    try testing.expect(try head.parse(text, test_limits));
    try testing.expectEqual(first.len, head.head_bytes);
    // A second call changes nothing.
    try testing.expect(try head.parse(text, test_limits));
    head.reset();
    const rest = text[first.len..];
    try testing.expect(try head.parse(rest, test_limits));
    try testing.expectEqual(second.len, head.head_bytes);
    try testing.expectEqualStrings("/2", head.path.of(rest));
    try testing.expectEqual(0, head.lines().len);
    try testing.expectEqualStrings("", head.authority.of(rest));
}

test "one empty line before the request line, and no more" {
    var parsed: Parsed = .{};
    const text = "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    try expect_complete(&parsed, text);
    try testing.expectEqual(text.len, parsed.head.head_bytes);
    try expect_refused(error.BadRequestLine, "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    try expect_refused(error.BareLineFeed, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    try expect_refused(error.BareLineFeed, "\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    try expect_refused(error.BareCarriageReturn, "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    try expect_refused(error.BareCarriageReturn, "\r\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    parsed.head.reset();
    parsed.head.begin_after_empty_line();
    try testing.expect(parsed.head.is_idle());
    try testing.expectError(error.BadRequestLine, parsed.head.parse("\r", test_limits));
    parsed.head.reset();
    parsed.head.begin_after_empty_line();
    try testing.expect(try parsed.head.parse(text[2..], test_limits));
}

test "methods are tokens" {
    var parsed: Parsed = .{};
    inline for (.{ "GET", "get", "M-SEARCH", "X", "!#$%&'*+-.^_`|~09az", "A" ** 500 }) |method| {
        const text = method ++ " / HTTP/1.1\r\nHost: a\r\n\r\n";
        try expect_complete(&parsed, text);
        try testing.expectEqualStrings(method, parsed.head.method.of(text));
    }
    inline for (.{ "GE(T", "G@T", "GE/T", "\"G\"", "G\xc3\x89T", "GET:", "\x80" }) |method| {
        try expect_refused(error.BadMethod, method ++ " / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    inline for (.{ " GET", "\tGET", "" }) |method| {
        try expect_refused(error.BadRequestLine, method ++ " / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    try expect_refused(error.ControlCharacter, "GE\x00T / HTTP/1.1\r\nHost: a\r\n\r\n");
}

test "noise is refused at its first byte" {
    // A TLS ClientHello.
    try expect_refused(error.ControlCharacter, "\x16");
    try expect_refused(error.BadMethod, "\xff");
    try expect_refused(error.BadMethod, "{");
    try expect_refused(error.BadRequestLine, " ");
    try expect_refused(error.ControlCharacter, "GET / HTTP/1.1\r\nHost: a\r\nX: \x00");
    try expect_refused(error.BareLineFeed, "GET /\n");
    try expect_refused(error.ObsoleteFolding, "GET / HTTP/1.1\r\n ");
}

test "three parts with one space between them" {
    const rest = "\r\nHost: a\r\n\r\n";
    inline for (.{
        "GET  / HTTP/1.1",
        "GET",
        "GET ",
        "GET  HTTP/1.1",
        "GET HTTP/1.1",
        "GET /",
        "GET / ",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / / HTTP/1.1",
        "GET / HTTP/1.1\t",
        "GET / HTTP /1.1",
        "GET / http/1.1",
        "GET / HTTP/1",
        "GET / HTTP/1.",
        "GET / HTTP/.1",
        "GET / HTTP/11",
        "GET / HTTP/1.10",
        "GET / HTTP/01.1",
        "GET / HTTP/1,1",
        "GET / HTTP/a.1",
        "GET / HTTP/1.a",
        "GET / HTTP-1.1",
        "GET / HTTPS/1.1",
        "GET / XXXX/1.1",
    }) |line| {
        try expect_refused(error.BadRequestLine, line ++ rest);
    }
}

test "versions" {
    var parsed: Parsed = .{};
    inline for (.{ "1.1", "1.2", "1.9" }) |version| {
        try expect_complete(&parsed, "GET / HTTP/" ++ version ++ "\r\nHost: a\r\n\r\n");
        try testing.expectEqual(Version.http_1_1, parsed.head.version);
    }
    try expect_complete(&parsed, "GET / HTTP/1.0\r\n\r\n");
    try testing.expectEqual(Version.http_1_0, parsed.head.version);
    inline for (.{ "0.9", "2.0", "2.1", "3.0", "9.9" }) |version| {
        const text = "GET / HTTP/" ++ version ++ "\r\nHost: a\r\n\r\n";
        try expect_refused(error.UnsupportedVersion, text);
    }
    // The connection preface of HTTP/2 (RFC 9113 3.4).
    try expect_refused(error.UnsupportedVersion, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

test "targets with bytes that may not be there" {
    const rest = " HTTP/1.1\r\nHost: a\r\n\r\n";
    inline for (.{ "/#", "/a#b", "/\xc3\xa9", "/\x80", "/\xff", "/a\tb", "\t/" }) |target| {
        try expect_refused(error.BadTarget, "GET " ++ target ++ rest);
    }
    inline for (.{ "/\x00", "/a\x01b", "/\x7f", "/a\x0bb" }) |target| {
        try expect_refused(error.ControlCharacter, "GET " ++ target ++ rest);
    }
    var parsed: Parsed = .{};
    // What browsers send raw.
    const raw = "/a|b\"{}<>\\^`[]%?%zz";
    try expect_complete(&parsed, "GET " ++ raw ++ rest);
    try testing.expectEqualStrings(raw, parsed.head.target.of("GET " ++ raw));
}

test "forms of targets" {
    const rest = " HTTP/1.1\r\nHost: b:1\r\n\r\n";
    const cases = .{
        .{ "GET /a?b", target_forms.Form.origin_form, "b:1", "/a" },
        .{ "GET http://a/c?d", target_forms.Form.absolute_form, "a", "/c" },
        .{ "GET HTTPS://a:8?d", target_forms.Form.absolute_form, "a:8", "" },
        .{ "CONNECT a:443", target_forms.Form.authority_form, "a:443", "" },
        .{ "OPTIONS *", target_forms.Form.asterisk_form, "b:1", "" },
        .{ "OPTIONS /", target_forms.Form.origin_form, "b:1", "/" },
    };
    var parsed: Parsed = .{};
    inline for (cases) |case| {
        const text = case[0] ++ rest;
        try expect_complete(&parsed, text);
        try testing.expectEqual(case[1], parsed.head.target_form);
        try testing.expectEqualStrings(case[2], parsed.head.authority.of(text));
        try testing.expectEqualStrings(case[3], parsed.head.path.of(text));
    }
    inline for (.{ "GET a", "GET *", "GET a:443", "CONNECT /", "CONNECT *", "GET f://a/" }) |line| {
        try expect_refused(error.BadTarget, line ++ rest);
    }
    inline for (.{ "GET http://u@a/", "GET http:///a", "GET http://a:x/" }) |line| {
        try expect_refused(error.BadTarget, line ++ rest);
    }
}

test "Host: exactly one that is valid" {
    const line = "GET / HTTP/1.1\r\n";
    try expect_refused(error.MissingHost, line ++ "\r\n");
    try expect_refused(error.MissingHost, line ++ "Hosts: a\r\n\r\n");
    try expect_refused(error.MissingHost, "GET http://a/ HTTP/1.1\r\n\r\n");
    try expect_refused(error.DuplicateHost, line ++ "Host: a\r\nhost: a\r\n\r\n");
    try expect_refused(error.DuplicateHost, line ++ "Host: a\r\nHost: b\r\n\r\n");
    try expect_refused(error.DuplicateHost, "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n");
    inline for (.{ "", "a b", "a,b", "a/b", "u@a", "a:b", "a:65536", "[::1", "a\xe9" }) |value| {
        try expect_refused(error.BadHost, line ++ "Host: " ++ value ++ "\r\n\r\n");
        // Also when the target has an authority of its own, and in HTTP/1.0.
        const absolute = "GET http://a/ HTTP/1.1\r\n";
        try expect_refused(error.BadHost, absolute ++ "Host: " ++ value ++ "\r\n\r\n");
        const old = "GET / HTTP/1.0\r\n";
        try expect_refused(error.BadHost, old ++ "Host: " ++ value ++ "\r\n\r\n");
    }
    var parsed: Parsed = .{};
    try expect_complete(&parsed, line ++ "host:[::1]:8000\r\n\r\n");
    try expect_complete(&parsed, "GET / HTTP/1.0\r\n\r\n");
    try testing.expectEqual(0, parsed.head.authority.len);
}

test "field lines that are refused" {
    try expect_fields_refused(error.BadFieldLine, "X-A\r\n");
    try expect_fields_refused(error.BadFieldLine, "GET / HTTP/1.1\r\n");
    try expect_fields_refused(error.BadFieldName, ": a\r\n");
    try expect_fields_refused(error.BadFieldName, "X-A : b\r\n");
    try expect_fields_refused(error.BadFieldName, "X-A\t: b\r\n");
    try expect_fields_refused(error.BadFieldName, "Content-Length : 5\r\n");
    try expect_fields_refused(error.BadFieldName, "X A: b\r\n");
    try expect_fields_refused(error.BadFieldName, "X(A): b\r\n");
    try expect_fields_refused(error.BadFieldName, "X\xe9: b\r\n");
    try expect_fields_refused(error.BadFieldName, "\"X\": b\r\n");
    try expect_fields_refused(error.ObsoleteFolding, " X-A: b\r\n");
    try expect_fields_refused(error.ObsoleteFolding, "X-A: b\r\n c\r\n");
    try expect_fields_refused(error.ObsoleteFolding, "X-A: b\r\n\tc\r\n");
    try expect_fields_refused(error.ObsoleteFolding, "X-A: b\r\n \r\n");
    try expect_fields_refused(error.BareLineFeed, "X-A: b\n");
    try expect_fields_refused(error.BareLineFeed, "X-A: b\nX-B: c\r\n");
    try expect_fields_refused(error.BareLineFeed, "\n");
    try expect_fields_refused(error.BareCarriageReturn, "X-A: b\rX-B: c\r\n");
    try expect_fields_refused(error.BareCarriageReturn, "X-A: b\r\r\n");
    try expect_fields_refused(error.BareCarriageReturn, "\rX-A: b\r\n");
    try expect_fields_refused(error.BareCarriageReturn, "X\r: b\r\n");
}

test "every byte in a field value" {
    var parsed: Parsed = .{};
    for (0..256) |value| {
        const byte: u8 = @intCast(value);
        // Among enough others for the vectors, and as the last one.
        for ([_][]const u8{ "", "0123456789abcdef0123456789abcdef" }) |filler| {
            var buffer: [128]u8 = undefined;
            const text = try std.fmt.bufPrint(&buffer, "GET / HTTP/1.0\r\nA: {s}{c}{s}\r\n\r\n", .{
                filler, byte, filler,
            });
            switch (byte) {
                '\n' => try expect_refused(error.BareLineFeed, text),
                // With nothing after it, this one makes CR CR LF.
                '\r' => try expect_refused(error.BareCarriageReturn, text),
                0...8, 0x0b, 0x0c, 0x0e...0x1f, 0x7f => {
                    try expect_refused(error.ControlCharacter, text);
                },
                else => try expect_complete(&parsed, text),
            }
        }
    }
}

test "every byte in a field name" {
    var parsed: Parsed = .{};
    for (0..256) |value| {
        const byte: u8 = @intCast(value);
        var buffer: [64]u8 = undefined;
        const text = try std.fmt.bufPrint(&buffer, "GET / HTTP/1.0\r\nA{c}A: b\r\n\r\n", .{byte});
        switch (byte) {
            '\n' => try expect_refused(error.BareLineFeed, text),
            '\r' => try expect_refused(error.BareCarriageReturn, text),
            0...8, 0x0b, 0x0c, 0x0e...0x1f, 0x7f => {
                try expect_refused(error.ControlCharacter, text);
            },
            else => if (scanner.is_token_byte(byte)) {
                try expect_complete(&parsed, text);
                const known: fields.Name = if (byte == '_') .underscored else .other;
                try testing.expectEqual(known, parsed.head.lines()[0].known);
            } else if (byte == ':') {
                try expect_complete(&parsed, text);
                try testing.expectEqualStrings("A: b", parsed.head.lines()[0].value.of(text));
            } else try expect_refused(error.BadFieldName, text),
        }
    }
}

test "persistence by version and Connection" {
    const cases = .{
        .{ "1.1", "", true },
        .{ "1.1", "Connection: close\r\n", false },
        .{ "1.1", "Connection: CLOSE\r\n", false },
        .{ "1.1", "connection: keep-alive\r\n", true },
        .{ "1.1", "Connection: keep-alive, close\r\n", false },
        .{ "1.1", "Connection: close, keep-alive\r\n", false },
        .{ "1.1", "Connection: Upgrade,\t,Close ,\r\n", false },
        .{ "1.1", "Connection: upgrade\r\nConnection: close\r\n", false },
        .{ "1.1", "Connection: close\r\nConnection: keep-alive\r\n", false },
        .{ "1.1", "Connection: closed\r\n", true },
        .{ "1.1", "Connection: not close\r\n", true },
        .{ "1.1", "Connection:\r\n", true },
        .{ "1.1", "Connection: ,,,\r\n", true },
        .{ "1.1", "Proxy-Connection: close\r\n", true },
        .{ "1.0", "", false },
        .{ "1.0", "Connection: keep-alive\r\n", true },
        .{ "1.0", "Connection: Keep-Alive\r\n", true },
        .{ "1.0", "Connection: foo , keep-alive\r\n", true },
        .{ "1.0", "Connection: keep-alive\r\nConnection: close\r\n", false },
        .{ "1.0", "Connection: keep-alive, close\r\n", false },
        .{ "1.0", "Connection: upgrade\r\n", false },
        .{ "1.0", "Proxy-Connection: keep-alive\r\n", false },
    };
    var parsed: Parsed = .{};
    inline for (cases) |case| {
        const text = "GET / HTTP/" ++ case[0] ++ "\r\nHost: a\r\n" ++ case[1] ++ "\r\n";
        try expect_complete(&parsed, text);
        errdefer std.debug.print("at: {s}\n", .{text});
        try testing.expectEqual(case[2], parsed.head.persistent);
    }
}

test "expectations" {
    var parsed: Parsed = .{};
    try expect_fields(&parsed, "Expect: 100-continue\r\n");
    try testing.expectEqual(Expect.continue_100, parsed.head.expect);
    try expect_fields(&parsed, "expect:\t100-Continue \r\n");
    try testing.expectEqual(Expect.continue_100, parsed.head.expect);
    try expect_complete(&parsed, "GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n");
    try testing.expectEqual(Expect.none, parsed.head.expect);
    // RFC 9110 5.6.1.2: a list may have empty elements, and be empty.
    inline for (.{ ", 100-continue,", ",\t,100-continue", "100-continue ,, " }) |value| {
        try expect_fields(&parsed, "Expect: " ++ value ++ "\r\n");
        try testing.expectEqual(Expect.continue_100, parsed.head.expect);
    }
    inline for (.{ "", " ", ",", " , ,\t" }) |value| {
        try expect_fields(&parsed, "Expect: " ++ value ++ "\r\n");
        try testing.expectEqual(Expect.none, parsed.head.expect);
    }
    try expect_fields(&parsed, "Expect:\r\nExpect: 100-continue\r\nExpect: ,\r\n");
    try testing.expectEqual(Expect.continue_100, parsed.head.expect);
    inline for (.{
        "200-ok", "100-continue, x", "100-continue;q", "100",            ", x,", "\"\"",
        "=",      ";",               "100-continue ;", "100 - continue",
    }) |value| {
        try expect_fields_refused(error.ExpectationFailed, "Expect: " ++ value ++ "\r\n");
    }
    // Said once: a list that says it again is none that a client makes.
    const again = "Expect: 100-continue, 100-continue\r\n";
    try expect_fields_refused(error.ExpectationFailed, again);
    const both = "Expect: x\r\nExpect: 100-continue\r\n";
    try expect_fields_refused(error.ExpectationFailed, both);
    // 400 goes before 417.
    try expect_fields_refused(error.BadContentLength, "Expect: x\r\nContent-Length: x\r\n");
    try expect_fields_refused(error.BadFieldLine, "Expect: x\r\nX\r\n");
}

test "framing comes from the field lines" {
    var parsed: Parsed = .{};
    try expect_fields(&parsed, "");
    try testing.expectEqual(framing.Framing.none, parsed.head.framing);
    try expect_fields(&parsed, "Content-Length: 0\r\n");
    try testing.expectEqual(framing.Framing{ .content_length = 0 }, parsed.head.framing);
    try expect_fields(&parsed, "Transfer-Encoding: Chunked\r\n");
    try testing.expectEqual(framing.Framing.chunked, parsed.head.framing);
    const old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    try expect_refused(error.BadTransferEncoding, old);
    const both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    try expect_fields_refused(error.ConflictingFraming, both);
    const twice = "Content-Length: 5\r\nX: y\r\ncontent-length: 5\r\n";
    try expect_fields_refused(error.DuplicateContentLength, twice);
}

test "malformed requests that servers are known to accept" {
    // Those with a chunked body are in chunked.zig.
    const post = "POST / HTTP/1.1\r\nHost: a\r\n";
    const both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    const cases = .{
        .{ error.ConflictingFraming, post ++ both },
        .{ error.UnsupportedTransferCoding, post ++ "Transfer-Encoding: chunked\r\n" ** 2 },
        .{ error.UnsupportedTransferCoding, post ++ "Transfer-Encoding: chunked, identity\r\n" },
        .{ error.UnsupportedTransferCoding, post ++ "Transfer-Encoding: xchunked\r\n" },
        .{ error.ControlCharacter, post ++ "Transfer-Encoding: \x0bchunked\r\n" },
        .{ error.BadTransferEncoding, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n" },
        .{ error.DuplicateContentLength, post ++ "Content-Length: 5\r\nContent-Length: 6\r\n" },
        .{ error.BadContentLength, post ++ "Content-Length: 5, 5\r\n" },
        .{ error.BadContentLength, post ++ "Content-Length: +5\r\n" },
        .{ error.BadContentLength, post ++ "Content-Length: -5\r\n" },
        .{ error.BadContentLength, post ++ "Content-Length: 5_0\r\n" },
        .{ error.BadContentLength, post ++ "Content-Length: 99999999999999999999999\r\n" },
        .{ error.BadFieldName, post ++ "X-A : b\r\n" },
        .{ error.BadFieldName, post ++ "Content-Length : 5\r\n" },
        .{ error.ObsoleteFolding, post ++ "X-A: b\r\n c\r\n" },
        .{ error.BareLineFeed, "GET / HTTP/1.1\nHost: a\n" },
        .{ error.BareLineFeed, post ++ "X-A: b\nX-B: c\r\n" },
        .{ error.BareCarriageReturn, post ++ "X-A: b\rX-B: c\r\n" },
        .{ error.ControlCharacter, post ++ "X-A: b\x00c\r\n" },
        .{ error.ControlCharacter, "GET /\x00 HTTP/1.1\r\nHost: a\r\n" },
        .{ error.BadFieldName, post ++ "X[A]: b\r\n" },
        .{ error.MissingHost, "GET / HTTP/1.1\r\n" },
        .{ error.DuplicateHost, post ++ "Host: b\r\n" },
        .{ error.BadHost, "GET / HTTP/1.1\r\nHost: a b/c\r\n" },
        .{ error.UnsupportedVersion, "GET / HTTP/2.0\r\nHost: a\r\n" },
        .{ error.BadMethod, "GE(T / HTTP/1.1\r\nHost: a\r\n" },
        .{ error.BadRequestLine, "GET  / HTTP/1.1\r\nHost: a\r\n" },
        .{ error.BadTarget, "GET a HTTP/1.1\r\nHost: a\r\n" },
        .{ error.BadTarget, "GET * HTTP/1.1\r\nHost: a\r\n" },
        .{ error.ObsoleteFolding, "GET / HTTP/1.1\r\n X-A: b\r\nHost: a\r\n" },
        .{ error.BadFieldName, post ++ ": b\r\n" },
    };
    inline for (cases) |case| try expect_refused(case[0], case[1] ++ "\r\n");
}

test "the request line at its limit, with and without an end" {
    const line = "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1";
    const rest = "\r\nHost: a\r\n\r\n";
    var limits = test_limits;
    var parsed: Parsed = .{};
    inline for (.{ line.len, line.len + 1 }) |bytes_max| {
        limits.request_line_bytes_max = bytes_max;
        try parse_text(&parsed, line ++ rest, limits);
        try testing.expect(parsed.complete);
        // The empty line before it does not count.
        try parse_text(&parsed, "\r\n" ++ line ++ rest, limits);
        try testing.expect(parsed.complete);
    }
    limits.request_line_bytes_max = line.len - 1;
    try expect_refused_within(error.RequestLineTooLong, line ++ rest, limits);
    try expect_refused_within(error.RequestLineTooLong, line, limits);
    try parse_text(&parsed, line[0 .. line.len - 1], limits);
    try testing.expectEqual(null, parsed.failure);
    // Whatever comes first decides.
    const late = line[0 .. line.len - 1] ++ "a\x00";
    try expect_refused_within(error.RequestLineTooLong, late, limits);
    const early = line[0 .. line.len - 1] ++ "\x00";
    try expect_refused_within(error.ControlCharacter, early, limits);
}

test "the head at its limit, with and without an end" {
    const text = "GET / HTTP/1.1\r\nHost: a\r\nX-A: bbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n\r\n";
    var limits = test_limits;
    var parsed: Parsed = .{};
    inline for (.{ text.len, text.len + 1 }) |bytes_max| {
        limits.head_bytes_max = bytes_max;
        try parse_text(&parsed, text, limits);
        try testing.expect(parsed.complete);
        try parse_text(&parsed, text ++ "body", limits);
        try testing.expect(parsed.complete);
    }
    limits.head_bytes_max = text.len - 1;
    try expect_refused_within(error.HeadTooLarge, text, limits);
    try expect_refused_within(error.HeadTooLarge, text ++ "body", limits);
    try expect_refused_within(error.HeadTooLarge, text[0 .. text.len - 1], limits);
    try parse_text(&parsed, text[0 .. text.len - 2], limits);
    try testing.expectEqual(null, parsed.failure);
    // The empty line before it counts.
    limits.head_bytes_max = text.len + 1;
    try expect_refused_within(error.HeadTooLarge, "\r\n" ++ text, limits);
    limits.head_bytes_max = text.len + 2;
    try parse_text(&parsed, "\r\n" ++ text, limits);
    try testing.expect(parsed.complete);
    try testing.expectEqual(text.len + 2, parsed.head.head_bytes);
}

test "limits that cut anywhere give one verdict" {
    const text = "\r\nGET /a HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\r\n";
    var parsed: Parsed = .{};
    for (0..text.len) |bytes_max| {
        var limits = test_limits;
        limits.head_bytes_max = @intCast(bytes_max);
        try expect_refused_within(error.HeadTooLarge, text, limits);
        limits = test_limits;
        limits.request_line_bytes_max = @intCast(bytes_max);
        try parse_text(&parsed, text, limits);
        try testing.expectEqual(bytes_max >= "GET /a HTTP/1.1".len, parsed.complete);
    }
}

test "field lines at their limit" {
    const start = "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\nX: c\r\n";
    var limits = test_limits;
    var parsed: Parsed = .{};
    for ([_]u16{ 3, 4 }) |lines_max| {
        limits.field_lines_max = lines_max;
        try parse_text(&parsed, start ++ "\r\n", limits);
        try testing.expect(parsed.complete);
    }
    limits.field_lines_max = 2;
    try expect_refused_within(error.TooManyFields, start ++ "\r\n", limits);
    limits.field_lines_max = 3;
    try parse_text(&parsed, start, limits);
    try testing.expectEqual(null, parsed.failure);
    // Known at the first byte of the line that is too many.
    try expect_refused_within(error.TooManyFields, start ++ "X", limits);
    // The storage is a limit, too.
    var storage: [2]FieldLine = undefined;
    var head: RequestHead = .init(&storage);
    try testing.expectError(error.TooManyFields, head.parse(start ++ "\r\n", test_limits));
}

test "limits as they are by default" {
    var parsed: Parsed = .{};
    const line_start = "GET /";
    const line_end = " HTTP/1.1";
    const filler = 8192 - line_start.len - line_end.len;
    const rest = line_end ++ "\r\nHost: a\r\n\r\n";
    try expect_complete(&parsed, line_start ++ "a" ** filler ++ rest);
    const long = line_start ++ "a" ** (filler + 1) ++ rest;
    try expect_refused(error.RequestLineTooLong, long);
    const field = "X-Filler: " ++ "b" ** 1000 ++ "\r\n";
    const head = "GET / HTTP/1.1\r\nHost: a\r\n" ++ field ** 64;
    const value = "b" ** (65536 - head.len - "X: \r\n\r\n".len);
    try expect_complete(&parsed, head ++ "X: " ++ value ++ "\r\n\r\n");
    try testing.expectEqual(65536, parsed.head.head_bytes);
    try expect_refused(error.HeadTooLarge, head ++ "X: " ++ value ++ "b\r\n\r\n");
    const lines = "GET / HTTP/1.1\r\nHost: a\r\n" ++ "X: b\r\n" ** 99;
    try expect_complete(&parsed, lines ++ "\r\n");
    try testing.expectEqual(100, parsed.head.lines().len);
    try expect_refused(error.TooManyFields, lines ++ "X: b\r\n\r\n");
}

test "status codes and reasons" {
    try testing.expectEqual(400, status_of(error.BareLineFeed));
    try testing.expectEqual(414, status_of(error.RequestLineTooLong));
    try testing.expectEqual(417, status_of(error.ExpectationFailed));
    try testing.expectEqual(431, status_of(error.HeadTooLarge));
    try testing.expectEqual(431, status_of(error.TooManyFields));
    try testing.expectEqual(501, status_of(error.UnsupportedTransferCoding));
    try testing.expectEqual(505, status_of(error.UnsupportedVersion));
    var seen: [64][]const u8 = undefined;
    inline for (@typeInfo(Error).error_set.?, 0..) |field, index| {
        const reason = reason_of(@field(Error, field.name));
        for (reason) |byte| try testing.expect(byte == '_' or std.ascii.isLower(byte));
        for (seen[0..index]) |other| try testing.expect(!std.mem.eql(u8, reason, other));
        seen[index] = reason;
    }
}

test "mutated requests: no panic, and one verdict however they are split" {
    var prng = std.Random.DefaultPrng.init(0x9112);
    const random = prng.random();
    const seeds = [_][]const u8{
        "GET /a?b=c HTTP/1.1\r\nHost: example.org:80\r\nAccept: */*\r\nCookie: a=b; c=d\r\n\r\n",
        "POST http://[::1]:80/%41 HTTP/1.1\r\nhost: a\r\nContent-Length: 5\r\n\r\nhello",
        "\r\nPUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive, x\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nX_Y: z\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    };
    const alphabet = "\r\n\r\n\r\n\x00\t \x7f\x80\xff:/?#%*,;=@[]_aZ019.";
    var parsed: Parsed = .{};
    var accepted: usize = 0;
    for (0..10_000) |_| {
        var bytes: [160]u8 = undefined;
        const seed = seeds[random.uintLessThan(usize, seeds.len)];
        @memcpy(bytes[0..seed.len], seed);
        var len = seed.len;
        for (0..random.intRangeAtMost(usize, 1, 3)) |_| {
            const at = random.uintLessThan(usize, len);
            const byte = alphabet[random.uintLessThan(usize, alphabet.len)];
            switch (random.uintLessThan(u8, 4)) {
                0 => bytes[at] = byte,
                1 => bytes[at] = random.int(u8),
                2 => {
                    @memmove(bytes[at .. len - 1], bytes[at + 1 .. len]);
                    len -= 1;
                },
                else => {
                    @memmove(bytes[at + 1 .. len + 1], bytes[at..len]);
                    bytes[at] = byte;
                    len += 1;
                },
            }
        }
        var limits = test_limits;
        if (random.uintLessThan(u8, 4) == 0) {
            limits.request_line_bytes_max = random.uintAtMost(u32, 40);
            limits.head_bytes_max = random.uintAtMost(u32, 160);
            limits.field_lines_max = random.uintAtMost(u16, 5);
        }
        errdefer std.debug.print("at: {f}\n", .{std.ascii.hexEscape(bytes[0..len], .lower)});
        try parse_text(&parsed, bytes[0..len], limits);
        if (!parsed.complete) continue;
        accepted += 1;
        try expect_sound(&parsed.head, bytes[0..len]);
    }
    // Neither everything nor nothing.
    try testing.expect(accepted > 500);
    try testing.expect(accepted < 9_500);
}

/// What holds for every head that was accepted.
fn expect_sound(head: *const RequestHead, bytes: []const u8) !void {
    const text = bytes[0..head.head_bytes];
    try testing.expect(std.mem.endsWith(u8, text, "\r\n\r\n"));
    try testing.expect(std.mem.count(u8, text, "\r") == std.mem.count(u8, text, "\n"));
    try testing.expect(scanner.is_token(head.method.of(text)));
    try testing.expect(head.target.len > 0);
    var hosts: usize = 0;
    var lengths: usize = 0;
    var codings: usize = 0;
    for (head.lines()) |line| {
        try testing.expect(scanner.is_token(line.name.of(text)));
        const value = line.value.of(text);
        try testing.expectEqualStrings(value, scanner.trim_whitespace(value));
        for (value) |byte| try testing.expect(!scanner.is_control(byte));
        if (line.known == .host) hosts += 1;
        if (line.known == .content_length) lengths += 1;
        if (line.known == .transfer_encoding) codings += 1;
    }
    try testing.expect(hosts <= 1);
    try testing.expect(head.version == .http_1_0 or hosts == 1);
    try testing.expect(lengths + codings <= 1);
    switch (head.framing) {
        .none => try testing.expectEqual(0, lengths + codings),
        .content_length => try testing.expectEqual(1, lengths),
        .chunked => try testing.expectEqual(1, codings),
    }
}

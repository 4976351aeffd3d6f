//! Fuzz target: the parser of request heads. However the bytes are split, one verdict; what is
//! accepted accounts for every byte, agrees with the grammar read a second time, and survives being
//! written and read again.
//!
//! Settings: bit 0 a small request line, bit 1 a small head, bit 2 few field lines.
//! Data: borrows the input for the call. Thread: one. GIL: not needed.

const std = @import("std");
const core = @import("core");
const given = @import("input.zig");
const reference = @import("reference.zig");
const request_head = core.request_head;

const expect = given.expect;
const expect_equal = given.expect_equal;
const RequestHead = request_head.RequestHead;
const FieldLine = request_head.FieldLine;
const lines_max = 100;

const Verdict = union(enum) { unfinished, complete, refused: request_head.Error };

var storages: [4][lines_max]FieldLine = undefined;
/// Two, so that what was parsed before moves as a connection's buffer does.
var buffers: [2][given.bytes_max]u8 = undefined;
var texts: [2][2 * given.bytes_max]u8 = undefined;

pub fn run(_: std.mem.Allocator, input: []const u8) void {
    const message = given.Input.of(input) orelse return;
    const limits = limits_of(message);
    var whole: RequestHead = .init(&storages[0]);
    const verdict = parse(&whole, message.bytes, limits);
    expect_same_split(message, limits, &whole, verdict);
    switch (verdict) {
        .refused => |err| {
            const status = request_head.status_of(err);
            expect(status >= 400 and status < 600, "a refusal has an error's status");
            expect(request_head.reason_of(err).len > 0, "a refusal has a reason");
        },
        .unfinished => {
            expect(message.bytes.len < limits.head_bytes_max, "a head ends within its limit");
            expect(whole.field_count <= limits.field_lines_max, "field lines have a limit");
        },
        .complete => {
            expect_within(&whole, limits);
            expect_every_byte(&whole, message.bytes);
            expect_meaning(&whole, message.bytes);
            expect_target(&whole, message.bytes);
            expect_prefix(&whole, message.bytes, limits);
            expect_round_trip(&whole, message.bytes);
        },
    }
    if (message.settings & 7 == 0) expect_grammar(message.bytes, verdict, &whole);
}

fn limits_of(message: given.Input) request_head.Limits {
    const size: u32 = message.seed >> 2;
    return .{
        .request_line_bytes_max = if (message.settings & 1 != 0) size else 8192,
        .head_bytes_max = if (message.settings & 2 != 0) size * 4 else 65536,
        .field_lines_max = if (message.settings & 4 != 0) @intCast(size / 8) else lines_max,
    };
}

fn parse(head: *RequestHead, bytes: []const u8, limits: request_head.Limits) Verdict {
    const complete = head.parse(bytes, limits) catch |err| return .{ .refused = err };
    return if (complete) .complete else .unfinished;
}

fn expect_same_split(
    message: given.Input,
    limits: request_head.Limits,
    whole: *const RequestHead,
    verdict: Verdict,
) void {
    var split: RequestHead = .init(&storages[1]);
    var split_verdict: Verdict = .unfinished;
    var pieces = message.pieces();
    var which: usize = 0;
    while (pieces.next()) |end| {
        which = 1 - which;
        @memset(&buffers[1 - which], 0);
        @memcpy(buffers[which][0..end], message.bytes[0..end]);
        split_verdict = parse(&split, buffers[which][0..end], limits);
        if (split_verdict != .unfinished) break;
    }
    expect(std.meta.eql(verdict, split_verdict), "one verdict however the bytes are split");
    switch (verdict) {
        .refused => {
            const again = parse(&split, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", limits);
            expect(std.meta.eql(verdict, again), "an error is final");
        },
        .unfinished => {},
        .complete => expect_same(whole, &split),
    }
}

fn expect_same(a: *const RequestHead, b: *const RequestHead) void {
    expect(a.field_count == b.field_count, "the same number of field lines");
    for (a.lines(), b.lines()) |line, other| {
        expect(std.meta.eql(line, other), "the same field lines");
    }
    var copy = b.*;
    copy.field_lines = a.field_lines;
    expect(std.meta.eql(a.*, copy), "the same head");
}

fn expect_within(head: *const RequestHead, limits: request_head.Limits) void {
    expect(head.head_bytes <= limits.head_bytes_max, "the head is within its limit");
    expect(head.field_count <= limits.field_lines_max, "field lines are within their limit");
    const line_len = head.target.start + head.target.len + " HTTP/1.1".len - head.method.start;
    expect(line_len <= limits.request_line_bytes_max, "the request line is within its limit");
}

/// Method, target, names and values stand one behind the other with nothing but what RFC 9112
/// allows between them, and no byte of the head belongs to none of them.
fn expect_every_byte(head: *const RequestHead, bytes: []const u8) void {
    const text = bytes[0..head.head_bytes];
    var at: usize = if (text[0] == '\r') 2 else 0;
    expect(head.method.start == at, "the method is first");
    expect(reference.is_token(head.method.of(text)), "the method is a token");
    at += head.method.len;
    expect(text[at] == ' ' and head.target.start == at + 1, "one space, then the target");
    expect(head.target.len > 0, "the target is not empty");
    at += 1 + head.target.len;
    expect_equal(text[at..][0..8], " HTTP/1.", "the version's name");
    const minor = text[at + 8];
    expect(std.ascii.isDigit(minor), "the version's digit");
    expect((head.version == .http_1_0) == (minor == '0'), "the version is the one sent");
    expect_equal(text[at + 9 ..][0..2], "\r\n", "the request line ends");
    at += 11;
    for (head.lines()) |line| {
        expect(line.name.start == at, "a field line follows at once");
        const name = line.name.of(text);
        expect(reference.is_token(name), "a field name is a token");
        at += line.name.len;
        expect(text[at] == ':', "a colon follows the name");
        const gap = text[at + 1 .. line.value.start];
        expect(reference.trim(gap).len == 0, "whitespace before the value");
        const value = line.value.of(text);
        expect_equal(reference.trim(value), value, "no whitespace round the value");
        expect(reference.is_field_text(value), "a value holds no control byte");
        at = line.value.start + line.value.len;
        while (text[at] == ' ' or text[at] == '\t') at += 1;
        expect_equal(text[at..][0..2], "\r\n", "a field line ends");
        at += 2;
    }
    expect_equal(text[at..], "\r\n", "the head ends with an empty line");
}

/// What the known fields say, found a second time by comparing every name.
fn expect_meaning(head: *const RequestHead, bytes: []const u8) void {
    var hosts: usize = 0;
    var close = false;
    var keep_alive = false;
    var expects = false;
    for (head.lines()) |line| {
        const name = line.name.of(bytes);
        const value = line.value.of(bytes);
        expect(line.known == name_of(name), "a name is the known one that it looks like");
        if (std.ascii.eqlIgnoreCase(name, "host")) {
            hosts += 1;
            expect(core.host.valid(value), "Host is valid");
            if (head.target_form == .origin_form) {
                expect_equal(head.authority.of(bytes), value, "Host is the authority");
            }
        }
        if (std.ascii.eqlIgnoreCase(name, "connection")) {
            var options = std.mem.splitScalar(u8, value, ',');
            while (options.next()) |option| {
                close = close or std.ascii.eqlIgnoreCase(reference.trim(option), "close");
                const keeps = std.ascii.eqlIgnoreCase(reference.trim(option), "keep-alive");
                keep_alive = keep_alive or keeps;
            }
        }
        if (std.ascii.eqlIgnoreCase(name, "expect")) {
            const expected = reference.read_expect(value) orelse
                @panic("broken promise: no other expectation");
            expects = expects or expected;
        }
    }
    const old = head.version == .http_1_0;
    expect(hosts <= 1 and (old or hosts == 1), "one Host");
    expect(head.persistent == (!close and (!old or keep_alive)), "persistence, RFC 9112 9.3");
    expect((head.expect == .continue_100) == (expects and !old), "100-continue");
    expect_framing(head, bytes);
}

fn expect_framing(head: *const RequestHead, bytes: []const u8) void {
    var lengths: [lines_max][]const u8 = undefined;
    var codings: [lines_max][]const u8 = undefined;
    var length_count: usize = 0;
    var coding_count: usize = 0;
    for (head.lines()) |line| {
        if (std.ascii.eqlIgnoreCase(line.name.of(bytes), "content-length")) {
            lengths[length_count] = line.value.of(bytes);
            length_count += 1;
        }
        if (std.ascii.eqlIgnoreCase(line.name.of(bytes), "transfer-encoding")) {
            codings[coding_count] = line.value.of(bytes);
            coding_count += 1;
        }
    }
    const length = reference.read_framing(
        head.version == .http_1_0,
        lengths[0..length_count],
        codings[0..coding_count],
    ) orelse @panic("broken promise: what could be framed in two ways is refused");
    switch (head.framing) {
        .none => expect(length == .none, "no framing"),
        .chunked => expect(length == .chunked, "chunked"),
        .content_length => |count| {
            expect(length == .bytes and length.bytes == count, "the length that was sent");
        },
    }
}

fn name_of(name: []const u8) core.fields.Name {
    for (0..core.fields.known_count) |index| {
        const known: core.fields.Name = @enumFromInt(index);
        if (std.ascii.eqlIgnoreCase(name, core.fields.wire_name(known))) return known;
    }
    return if (std.mem.indexOfScalar(u8, name, '_') != null) .underscored else .other;
}

/// Authority, path and query lie in the target, in this order, and nothing else does.
fn expect_target(head: *const RequestHead, bytes: []const u8) void {
    const text = head.target.of(bytes);
    const path = head.path.of(bytes);
    const query = head.query.of(bytes);
    switch (head.target_form) {
        .asterisk_form => expect_equal(text, "*", "the asterisk"),
        .authority_form => expect_equal(text, head.authority.of(bytes), "the authority"),
        .origin_form, .absolute_form => {
            const mark: usize = @intFromBool(head.has_query);
            const tail = text[text.len - path.len - mark - query.len ..];
            expect_equal(tail[0..path.len], path, "the path");
            expect_equal(tail[path.len + mark ..], query, "the query");
            if (head.has_query) expect(tail[path.len] == '?', "a question mark between them");
            expect(std.mem.indexOfScalar(u8, path, '?') == null, "no question mark in the path");
            if (head.target_form == .origin_form) {
                expect(tail.len == text.len and path[0] == '/', "the origin form is all path");
            } else {
                const front = text[0 .. text.len - tail.len];
                expect(std.mem.endsWith(u8, front, head.authority.of(bytes)), "its authority");
            }
        },
    }
    expect_decoded(path);
}

fn expect_decoded(path: []const u8) void {
    const decoded = core.target.percent_decode(texts[0][0..path.len], path);
    expect(decoded.len <= path.len, "decoding makes nothing longer");
    expect(core.target.has_percent(path) or std.mem.eql(u8, decoded, path), "nothing to decode");
    const escapes = std.mem.count(u8, path, "%");
    expect(decoded.len + 2 * escapes >= path.len, "an escape is three bytes");
    @memcpy(texts[1][0..path.len], path);
    const in_place = core.target.percent_decode(texts[1][0..path.len], texts[1][0..path.len]);
    expect_equal(decoded, in_place, "decoding in place is the same");
}

/// Nothing behind the head has been looked at, and nothing less is a head.
fn expect_prefix(head: *const RequestHead, bytes: []const u8, limits: request_head.Limits) void {
    var alone: RequestHead = .init(&storages[1]);
    const text = bytes[0..head.head_bytes];
    expect(parse(&alone, text, limits) == .complete, "what follows does not matter");
    expect_same(head, &alone);
    var shorter: RequestHead = .init(&storages[1]);
    const verdict = parse(&shorter, text[0 .. text.len - 1], limits);
    expect(verdict == .unfinished, "a head lacks its last byte");
}

/// Written in its plainest form and read again it is the same request; so it is once more.
fn expect_round_trip(head: *const RequestHead, bytes: []const u8) void {
    const text = write(head, bytes, &texts[0]);
    const generous: request_head.Limits = .{
        .request_line_bytes_max = 2 * given.bytes_max,
        .head_bytes_max = 2 * given.bytes_max,
        .field_lines_max = lines_max,
    };
    var again: RequestHead = .init(&storages[2]);
    expect(parse(&again, text, generous) == .complete, "what was accepted is accepted again");
    expect(again.head_bytes == text.len, "all of it");
    expect(head.persistent == again.persistent, "the same persistence");
    expect(head.expect == again.expect, "the same expectation");
    expect(std.meta.eql(head.framing, again.framing), "the same framing");
    expect(head.target_form == again.target_form, "the same form");
    expect_equal(head.path.of(bytes), again.path.of(text), "the same path");
    expect_equal(head.query.of(bytes), again.query.of(text), "the same query");
    expect_equal(head.authority.of(bytes), again.authority.of(text), "the same authority");
    for (head.lines(), again.lines()) |line, other| {
        expect(line.known == other.known, "the same known name");
    }
    expect_equal(write(&again, text, &texts[1]), text, "writing is idempotent");
}

fn write(head: *const RequestHead, bytes: []const u8, to: []u8) []const u8 {
    var writer: std.Io.Writer = .fixed(to);
    write_lines(head, bytes, &writer) catch @panic("broken promise: a head does not grow so much");
    return writer.buffered();
}

fn write_lines(head: *const RequestHead, bytes: []const u8, to: *std.Io.Writer) !void {
    const version = if (head.version == .http_1_0) "1.0" else "1.1";
    try to.print("{s} {s} HTTP/{s}\r\n", .{
        head.method.of(bytes), head.target.of(bytes), version,
    });
    for (head.lines()) |line| {
        try to.print("{s}: {s}\r\n", .{ line.name.of(bytes), line.value.of(bytes) });
    }
    try to.writeAll("\r\n");
}

/// Under the usual limits the parser accepts what the grammar, read a second time, accepts.
fn expect_grammar(bytes: []const u8, verdict: Verdict, head: *const RequestHead) void {
    const reading = reference.read_head(bytes, lines_max);
    switch (verdict) {
        .complete => {
            const same = reading == .valid and reading.valid == head.head_bytes;
            expect(same, "the grammar accepts it, too");
        },
        .unfinished => expect(reading == .unfinished, "the grammar waits for more, too"),
        .refused => {
            expect(reading != .valid, "the grammar refuses it, too");
            // Refused early: then no end makes it right.
            for ([_][]const u8{ "\n", "\r\n\r\n", "\r\nHost: a\r\n\r\n", "a\r\n\r\n" }) |end| {
                @memcpy(texts[0][0..bytes.len], bytes);
                @memcpy(texts[0][bytes.len..][0..end.len], end);
                const extended = texts[0][0 .. bytes.len + end.len];
                const again = reference.read_head(extended, lines_max);
                expect(again != .valid, "what is refused early has no right end");
            }
        },
    }
}

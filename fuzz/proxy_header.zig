//! Fuzz target: the PROXY protocol's header. However the bytes are split, one verdict; what is
//! accepted agrees with a second reading of versions 1 and 2, and nothing behind it is looked at.
//!
//! Settings: bits 0 and 1 put the start of version 1 or 2 before the bytes.
//! Data: borrows the input for the call. Thread: one. GIL: not needed.

const std = @import("std");
const core = @import("core");
const given = @import("input.zig");
const proxy_header = core.proxy_header;

const expect = given.expect;
const Parser = proxy_header.Parser;
const Source = proxy_header.Source;

const signature = "\r\n\r\n\x00\r\nQUIT\n";
const Verdict = union(enum) { unfinished, complete, refused: proxy_header.Error };

var text: [given.bytes_max + 16]u8 = undefined;
var moved: [given.bytes_max + 16]u8 = undefined;

pub fn run(_: std.mem.Allocator, input: []const u8) void {
    var message = given.Input.of(input) orelse return;
    const start = switch (message.settings & 3) {
        0 => "",
        1 => "PROXY ",
        2 => signature,
        else => signature ++ "\x21",
    };
    @memcpy(text[0..start.len], start);
    @memcpy(text[start.len..][0..message.bytes.len], message.bytes);
    message.bytes = text[0 .. start.len + message.bytes.len];
    var whole: Parser = .{};
    const verdict = feed(&whole, message.bytes);
    expect_same_split(message, verdict, &whole);
    switch (verdict) {
        .complete => {
            expect_alone(message.bytes, &whole);
            expect_round_trip(whole.source);
        },
        .unfinished => expect(message.bytes.len < proxy_header.bytes_max, "a header has an end"),
        .refused => {},
    }
    expect_reading(message.bytes, verdict, &whole);
}

fn feed(parser: *Parser, bytes: []const u8) Verdict {
    const complete = parser.feed(bytes) catch |err| return .{ .refused = err };
    return if (complete) .complete else .unfinished;
}

fn expect_same_split(message: given.Input, verdict: Verdict, whole: *const Parser) void {
    var split: Parser = .{};
    var split_verdict: Verdict = .unfinished;
    var pieces = message.pieces();
    while (pieces.next()) |end| {
        @memset(&moved, 0);
        @memcpy(moved[0..end], message.bytes[0..end]);
        split_verdict = feed(&split, moved[0..end]);
        if (split_verdict != .unfinished) break;
    }
    expect(std.meta.eql(verdict, split_verdict), "one verdict however the bytes are split");
    if (verdict != .complete) return;
    expect(whole.header_bytes == split.header_bytes, "one end however they are split");
    expect_same(whole.source, split.source);
}

fn expect_same(a: Source, b: Source) void {
    expect(std.meta.activeTag(a) == b, "the same kind of source");
    if (a != .address) return;
    const octets = core.sys.address_octets(&a.address) orelse unreachable;
    const others = core.sys.address_octets(&b.address) orelse unreachable;
    expect(std.mem.eql(u8, &octets, &others), "the same address");
    const port = core.sys.address_port(&a.address);
    expect(port == core.sys.address_port(&b.address), "the same port");
}

/// What follows the header has no part in it, and nothing less is a header.
fn expect_alone(bytes: []const u8, whole: *const Parser) void {
    expect(whole.header_bytes <= bytes.len, "a header is part of what came");
    expect(whole.header_bytes <= proxy_header.bytes_max, "a header has a limit");
    var alone: Parser = .{};
    const again = feed(&alone, bytes[0..whole.header_bytes]);
    expect(again == .complete, "what follows is not looked at");
    expect_same(whole.source, alone.source);
    var shorter: Parser = .{};
    const verdict = feed(&shorter, bytes[0 .. whole.header_bytes - 1]);
    expect(verdict == .unfinished, "a header lacks its last byte");
}

/// An address, written as version 1 writes it, is read as the same.
fn expect_round_trip(source: Source) void {
    if (source != .address) return;
    var storage: [core.sys.address_text_bytes_max]u8 = undefined;
    const address = core.sys.address_text(&source.address, &storage);
    const family: u8 = if (std.mem.indexOfScalar(u8, address, ':') == null) '4' else '6';
    var line: [128]u8 = undefined;
    const header = std.fmt.bufPrint(&line, "PROXY TCP{c} {s} {s} {d} 1\r\n", .{
        family, address, address, core.sys.address_port(&source.address) orelse 0,
    }) catch unreachable;
    var again: Parser = .{};
    expect(feed(&again, header) == .complete, "an address can be written again");
    expect_same(source, again.source);
}

/// Both versions read a second time; complete headers only.
fn expect_reading(bytes: []const u8, verdict: Verdict, whole: *const Parser) void {
    const reading = if (std.mem.startsWith(u8, bytes, signature))
        read_version_2(bytes)
    else
        read_version_1(bytes);
    switch (verdict) {
        .complete => {
            const found = reading orelse @panic("broken promise: what is accepted is a header");
            expect(found.len == whole.header_bytes, "it ends where the specification says");
            expect_same(found.source, whole.source);
        },
        .unfinished, .refused => expect(reading == null, "what is a header is accepted"),
    }
}

const Reading = struct { len: usize, source: Source };

fn read_version_1(bytes: []const u8) ?Reading {
    const end = std.mem.indexOf(u8, bytes, "\r\n") orelse return null;
    const line = bytes[0..end];
    if (line.len + 2 > proxy_header.version_1_bytes_max) return null;
    if (!std.mem.startsWith(u8, line, "PROXY ")) return null;
    for (line) |byte| if (std.ascii.isControl(byte) and byte != '\t') return null;
    var words: [6][]const u8 = undefined;
    var count: usize = 0;
    var rest = std.mem.splitScalar(u8, line, ' ');
    while (rest.next()) |word| : (count += 1) {
        if (count == 2 and std.mem.eql(u8, words[1], "UNKNOWN")) break;
        if (count == words.len) return null;
        words[count] = word;
    }
    if (std.mem.eql(u8, words[1], "UNKNOWN")) return .{ .len = end + 2, .source = .unknown };
    if (count != words.len) return null;
    const port = read_port(words[4]) orelse return null;
    if (read_port(words[5]) == null) return null;
    var addresses: [2]core.sys.Address = undefined;
    for (&addresses, words[2..4]) |*address, word| {
        address.* = read_address(words[1], word, port) orelse return null;
    }
    return .{ .len = end + 2, .source = .{ .address = addresses[0] } };
}

fn read_port(word: []const u8) ?u16 {
    for (word) |byte| if (!std.ascii.isDigit(byte)) return null;
    if (word.len > 1 and word[0] == '0') return null;
    return std.fmt.parseInt(u16, word, 10) catch null;
}

extern "c" fn inet_pton(family: c_int, text: [*:0]const u8, to: *anyopaque) c_int;

fn read_address(family: []const u8, word: []const u8, port: u16) ?core.sys.Address {
    var buffer: [64]u8 = undefined;
    const given_text = std.fmt.bufPrintZ(&buffer, "{s}", .{word}) catch return null;
    if (std.mem.eql(u8, family, "TCP4")) {
        var octets: [4]u8 = undefined;
        if (inet_pton(std.c.AF.INET, given_text, &octets) != 1) return null;
        return core.sys.ipv4_address(octets, port);
    }
    if (!std.mem.eql(u8, family, "TCP6")) return null;
    var octets: [16]u8 = undefined;
    if (inet_pton(std.c.AF.INET6, given_text, &octets) != 1) return null;
    const ip: core.cidr.Ip = .{ .bits = std.mem.readInt(u128, &octets, .big) };
    return ip.address(port);
}

fn read_version_2(bytes: []const u8) ?Reading {
    if (bytes.len < 16 or bytes[12] >> 4 != 2) return null;
    const rest_len = @as(usize, bytes[14]) << 8 | bytes[15];
    if (rest_len > proxy_header.version_2_rest_bytes_max or bytes.len < 16 + rest_len) return null;
    const rest = bytes[16..][0..rest_len];
    const len = 16 + rest_len;
    if (bytes[12] & 15 == 0) return .{ .len = len, .source = .local };
    const family = bytes[13] >> 4;
    const transport = bytes[13] & 15;
    if (bytes[12] & 15 != 1 or family > 3 or transport > 2) return null;
    if (family == 0 or transport == 0) return .{ .len = len, .source = .unknown };
    const addresses_len = [_]usize{ 0, 12, 36, 216 };
    if (rest_len < addresses_len[family]) return null;
    if (family == 3) return .{ .len = len, .source = .unix };
    const at: usize = if (family == 1) 8 else 32;
    const port = @as(u16, rest[at]) << 8 | rest[at + 1];
    var bits: u128 = if (family == 1) 0xffff else 0;
    for (rest[0 .. at / 2]) |byte| bits = bits << 8 | byte;
    const ip: core.cidr.Ip = .{ .bits = bits };
    return .{ .len = len, .source = .{ .address = ip.address(port) } };
}

//! Fuzz target: what proxies say of a client. What is believed is valid and was said by whom it is
//! ascribed to; nothing that a client can put to the left of it changes it, nor how a list is split
//! into field lines.
//!
//! Settings: bit 0 Forwarded instead of X-Forwarded-*, bits 1 and 2 who is trusted. Each line of
//! the bytes is a field: a letter for its name, then its value. Data: borrows the input for the
//! call. Thread: one. GIL: not needed.

const std = @import("std");
const core = @import("core");
const given = @import("input.zig");
const reference = @import("reference.zig");
const cidr = core.cidr;
const forwarded = core.forwarded;
const FieldLine = core.request_head.FieldLine;

const expect = given.expect;
const expect_equal = given.expect_equal;
const lines_max = 100;

const Verdict = forwarded.Error!forwarded.Claims;

/// Field lines and the bytes that they point into.
const Fields = struct {
    bytes: [2 * given.bytes_max]u8 = undefined,
    len: usize = 0,
    lines: [lines_max]FieldLine = undefined,
    count: usize = 0,

    fn add(self: *Fields, name: core.fields.Name, values: []const []const u8) void {
        if (self.count == lines_max) return;
        const start = self.len;
        for (values, 0..) |value, index| {
            for ([_][]const u8{ if (index == 0) "" else ", ", value }) |piece| {
                @memcpy(self.bytes[self.len..][0..piece.len], piece);
                self.len += piece.len;
            }
        }
        self.lines[self.count] = .{
            .name = .{},
            .value = .{ .start = @intCast(start), .len = @intCast(self.len - start) },
            .known = name,
        };
        self.count += 1;
    }

    fn value_of(self: *const Fields, index: usize) []const u8 {
        return self.lines[index].value.of(&self.bytes);
    }

    fn read(self: *const Fields, flavour: forwarded.Flavour, trusted: []const cidr.Range) Verdict {
        const bytes = self.bytes[0..self.len];
        return forwarded.read(bytes, self.lines[0..self.count], flavour, trusted);
    }
};

var sent: Fields = .{};
var other: Fields = .{};

pub fn run(_: std.mem.Allocator, input: []const u8) void {
    const message = given.Input.of(input) orelse return;
    const flavour: forwarded.Flavour = if (message.settings & 1 != 0) .forwarded else .x_forwarded;
    const trusted = trusted_of(message.settings >> 1 & 3);
    fill(&sent, message.bytes);
    const verdict = sent.read(flavour, trusted);
    expect_own_flavour(flavour, trusted, verdict);
    expect_joined(flavour, trusted, verdict);
    const claims = verdict catch |err| {
        return expect(forwarded.reason_of(err).len > 0, "a refusal has a reason");
    };
    expect_valid(&claims, flavour);
    if (flavour == .x_forwarded) expect_scheme(&claims);
    expect_unforgeable(flavour, trusted, claims);
    if (flavour == .x_forwarded) expect_walk(trusted, &claims);
}

fn trusted_of(choice: u8) []const cidr.Range {
    const texts = [_][]const u8{ "10.0.0.0/8", "::/0", "fd00::/8" };
    const Static = struct {
        var ranges: [texts.len]cidr.Range = undefined;
        var made = false;
    };
    if (!Static.made) {
        for (&Static.ranges, texts) |*range, text| range.* = cidr.Range.parse(text).?;
        Static.made = true;
    }
    return switch (choice) {
        0 => Static.ranges[0..1],
        1 => Static.ranges[0..0],
        2 => Static.ranges[0..2],
        else => Static.ranges[2..3],
    };
}

fn fill(to: *Fields, bytes: []const u8) void {
    to.len = 0;
    to.count = 0;
    var lines = std.mem.splitScalar(u8, bytes, '\n');
    while (lines.next()) |line| {
        if (line.len == 0) continue;
        const name: core.fields.Name = switch (line[0]) {
            'F' => .forwarded,
            'f' => .x_forwarded_for,
            'p' => .x_forwarded_proto,
            'h' => .x_forwarded_host,
            'o' => .x_forwarded_port,
            'x' => .x_forwarded_prefix,
            's' => .x_forwarded_ssl,
            else => .other,
        };
        const value = reference.trim(line[1..]);
        // As the request head hands values over.
        if (reference.is_field_text(value)) to.add(name, &.{value});
    }
}

fn expect_same(a: Verdict, b: Verdict, bytes: []const u8, others: []const u8) void {
    const first = a catch |err| {
        _ = b catch |again| return expect(err == again, "the same refusal");
        @panic("broken promise: a refusal both times");
    };
    const second = b catch @panic("broken promise: believed both times");
    expect((first.client == null) == (second.client == null), "a client both times");
    if (first.client) |client| expect_same_address(client, second.client.?);
    expect(first.scheme == second.scheme, "the same scheme");
    expect(first.port == second.port, "the same port");
    expect_equal(first.host.of(bytes), second.host.of(others), "the same host");
    expect_equal(first.prefix.of(bytes), second.prefix.of(others), "the same prefix");
}

fn expect_same_address(a: core.sys.Address, b: core.sys.Address) void {
    const octets = core.sys.address_octets(&a);
    const others = core.sys.address_octets(&b);
    expect((octets == null) == (others == null), "an address both times");
    if (octets) |known| expect(std.mem.eql(u8, &known, &others.?), "the same address");
    expect(core.sys.address_port(&a) == core.sys.address_port(&b), "the same client's port");
}

/// What the other flavour says proves nothing, and so changes nothing.
fn expect_own_flavour(
    flavour: forwarded.Flavour,
    trusted: []const cidr.Range,
    verdict: Verdict,
) void {
    other.len = 0;
    other.count = 0;
    for (sent.lines[0..sent.count], 0..) |line, index| {
        if (forwarded.flavour_of(line.known) != flavour) continue;
        other.add(line.known, &.{sent.value_of(index)});
    }
    expect_same(verdict, other.read(flavour, trusted), &sent.bytes, &other.bytes);
}

/// RFC 9110 5.3: several field lines are one list.
fn expect_joined(flavour: forwarded.Flavour, trusted: []const cidr.Range, verdict: Verdict) void {
    other.len = 0;
    other.count = 0;
    for (0..core.fields.known_count) |index| {
        const name: core.fields.Name = @enumFromInt(index);
        var values: [lines_max][]const u8 = undefined;
        var count: usize = 0;
        for (sent.lines[0..sent.count], 0..) |line, at| {
            if (line.known != name) continue;
            values[count] = sent.value_of(at);
            count += 1;
        }
        if (count > 0) other.add(name, values[0..count]);
    }
    const joined = other.read(flavour, trusted);
    // A quote that one line leaves open may close in the next: wrong in lines, right as one.
    if (flavour == .forwarded) _ = verdict catch return;
    expect_same(verdict, joined, &sent.bytes, &other.bytes);
}

fn expect_valid(claims: *const forwarded.Claims, flavour: forwarded.Flavour) void {
    if (claims.host.len > 0) {
        const authority = core.host.split(claims.host.of(&sent.bytes));
        expect(authority != null and authority.?.port != 0, "a host is one, with a port of one");
        const named: core.fields.Name = switch (flavour) {
            .forwarded => .forwarded,
            .x_forwarded => .x_forwarded_host,
        };
        expect(lies_in(claims.host, named), "a host comes from its field");
    }
    if (claims.port) |port| expect(port > 0, "a port is one");
    const prefix = claims.prefix.of(&sent.bytes);
    if (prefix.len > 0) {
        expect(flavour == .x_forwarded, "a prefix is the X-Forwarded flavour's");
        expect(lies_in(claims.prefix, .x_forwarded_prefix), "a prefix comes from its field");
        expect(prefix[0] == '/' and prefix[prefix.len - 1] != '/', "a prefix is a path");
        for ([_][]const u8{ "//", "/./", "/../", "?", "#", "%", "\\", "\"", "<", "," }) |bad| {
            expect(std.mem.indexOf(u8, prefix, bad) == null, "a prefix leads nowhere else");
        }
        expect(!std.mem.endsWith(u8, prefix, "/.."), "nor does its end");
        for (prefix) |byte| expect(byte > 0x20 and byte < 0x7f, "a prefix is plain");
    }
    const port = claims.server_port(&sent.bytes, "a:1");
    const silent = claims.port == null and claims.scheme == null and claims.host.len == 0;
    expect((port == null) == silent, "a port is known when anything is");
}

/// The scheme a second time, where a single field line says it.
fn expect_scheme(claims: *const forwarded.Claims) void {
    var said: ?[]const u8 = null;
    for (sent.lines[0..sent.count], 0..) |line, index| {
        if (line.known != .x_forwarded_proto) continue;
        if (said != null) return;
        said = sent.value_of(index);
    }
    const text = said orelse return expect(claims.scheme == null, "nobody has said a scheme");
    if (std.mem.indexOfScalar(u8, text, ',') != null) return;
    const schemes = [_]struct { []const u8, ?forwarded.Scheme }{
        .{ "http", .http }, .{ "ws", .http }, .{ "https", .https }, .{ "wss", .https },
        .{ "", null },
    };
    for (schemes) |scheme| {
        if (!std.ascii.eqlIgnoreCase(reference.trim(text), scheme[0])) continue;
        return expect(claims.scheme == scheme[1], "the scheme is the one that was said");
    }
    expect(false, "no other scheme is believed");
}

fn lies_in(span: anytype, name: core.fields.Name) bool {
    for (sent.lines[0..sent.count]) |line| {
        if (line.known != name) continue;
        const end = line.value.start + line.value.len;
        if (span.start >= line.value.start and span.start + span.len <= end) return true;
    }
    return false;
}

/// Once the walk ended at an address that is not trusted, what is to the left of it, where a client
/// can write what it likes, changes nothing.
fn expect_unforgeable(
    flavour: forwarded.Flavour,
    trusted: []const cidr.Range,
    claims: forwarded.Claims,
) void {
    const client = claims.client orelse return;
    const ip = cidr.Ip.of(&client) orelse return;
    if (cidr.contains(trusted, ip)) return;
    const name: core.fields.Name = if (flavour == .forwarded) .forwarded else .x_forwarded_for;
    const forgeries: []const []const u8 = if (flavour == .forwarded)
        &.{ "for=6.6.6.6;proto=https;host=evil.example", "for=10.6.6.6", "for=_hidden", "x=y" }
    else
        &.{ "6.6.6.6", "10.6.6.6", "unknown", "<>", "\"" };
    for (forgeries) |forgery| {
        other.len = 0;
        other.count = 0;
        if (sent.count == lines_max) return;
        other.add(name, &.{forgery});
        for (sent.lines[0..sent.count], 0..) |line, index| {
            other.add(line.known, &.{sent.value_of(index)});
        }
        expect_same(claims, other.read(flavour, trusted), &sent.bytes, &other.bytes);
    }
}

/// The walk itself a second time, where all elements are plain addresses.
fn expect_walk(trusted: []const cidr.Range, claims: *const forwarded.Claims) void {
    var found: ?cidr.Ip = null;
    var left = sent.count;
    walk: while (left > 0) {
        left -= 1;
        if (sent.lines[left].known != .x_forwarded_for) continue;
        var elements = std.mem.splitBackwardsScalar(u8, sent.value_of(left), ',');
        while (elements.next()) |element| {
            const text = reference.trim(element);
            if (text.len == 0) continue;
            found = cidr.Ip.parse(text) orelse return;
            if (!cidr.contains(trusted, found.?)) break :walk;
        }
    }
    expect((found == null) == (claims.client == null), "a client if anyone is named");
    if (found) |ip| expect_same_address(ip.address(0), claims.client.?);
}

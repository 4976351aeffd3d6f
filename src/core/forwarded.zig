//! What the proxies in front of the server say of a client: X-Forwarded-For, -Proto, -Host, -Port
//! and -Prefix, or Forwarded (RFC 7239). Asked only about requests of a trusted peer.
//!
//! Each proxy adds what it saw at the right end of a list, and what a client forged is to the left
//! of that. So the list is walked from the right, past the proxies that are trusted themselves, to
//! the first address that is not: that is the client, and what else is believed comes from the
//! proxy that named it. Several field lines are one list (RFC 9110 5.3). What is believed must be
//! valid: guessing would give a client rights that another one has.
//!
//! Pure; the results are spans into the caller's bytes. Thread: any. GIL: not needed.

const std = @import("std");
const cidr = @import("cidr.zig");
const fields = @import("fields.zig");
const host = @import("host.zig");
const request_head = @import("request_head.zig");
const scanner = @import("scanner.zig");
const sys = @import("sys.zig");
const FieldLine = request_head.FieldLine;
const Span = scanner.Span;

/// Which of the two ways the proxies have. The other one's fields prove nothing: a proxy passes
/// them on as it got them.
pub const Flavour = enum {
    x_forwarded,
    forwarded,

    /// As the configuration names it.
    pub fn parse(text: []const u8) ?Flavour {
        if (std.mem.eql(u8, text, "x-forwarded")) return .x_forwarded;
        if (std.mem.eql(u8, text, "forwarded")) return .forwarded;
        return null;
    }
};

pub const Scheme = enum { http, https };

pub const Claims = struct {
    /// Null where nothing was said; `sys.no_address` where the proxies keep it to themselves.
    client: ?sys.Address = null,
    scheme: ?Scheme = null,
    /// A valid authority; empty where nothing was said.
    host: Span = .{},
    port: ?u16 = null,
    /// Begins with a slash and does not end with one; empty where nothing was said.
    prefix: Span = .{},

    /// The port that the client used, as far as it is known; `authority` is the request's own.
    pub fn server_port(self: *const Claims, bytes: []const u8, authority: []const u8) ?u16 {
        if (self.port) |port| return port;
        if (self.scheme == null and self.host.len == 0) return null;
        const named = if (self.host.len > 0) self.host.of(bytes) else authority;
        if (host.split(named)) |parts| if (parts.port) |port| return port;
        return switch (self.scheme orelse .http) {
            .http => 80,
            .https => 443,
        };
    }
};

pub const Error = error{
    /// A Forwarded field outside its grammar.
    BadForwarded,
    BadForwardedFor,
    BadForwardedProto,
    BadForwardedHost,
    BadForwardedPort,
    BadForwardedPrefix,
};

/// One word for the log and for the metric's label; the answer is 400 for all of them.
pub fn reason_of(err: Error) []const u8 {
    return switch (err) {
        error.BadForwarded => "bad_forwarded",
        error.BadForwardedFor => "bad_forwarded_for",
        error.BadForwardedProto => "bad_forwarded_proto",
        error.BadForwardedHost => "bad_forwarded_host",
        error.BadForwardedPort => "bad_forwarded_port",
        error.BadForwardedPrefix => "bad_forwarded_prefix",
    };
}

/// Which flavour a known field belongs to; null for all other fields.
pub fn flavour_of(name: fields.Name) ?Flavour {
    return switch (name) {
        .forwarded => .forwarded,
        .x_forwarded_for, .x_forwarded_proto, .x_forwarded_host, .x_forwarded_port => .x_forwarded,
        .x_forwarded_prefix, .x_forwarded_server, .x_forwarded_ssl => .x_forwarded,
        else => null,
    };
}

/// Whether a field that has no name of its own in `fields` is one of X-Forwarded-*: applications
/// read more of them than this file does (X-Forwarded-User, X-Forwarded-Client-Cert).
pub fn is_x_forwarded(name: []const u8) bool {
    const start = "x-forwarded-";
    if (name.len == 0 or name[0] | 0x20 != start[0]) return false;
    return name.len >= start.len and scanner.equals_ignoring_case(name[0..start.len], start);
}

/// What the field lines of a request say, whose peer is trusted. `bytes` are what the lines point
/// into; `trusted` are the proxies.
pub fn read(
    bytes: []const u8,
    lines: []const FieldLine,
    flavour: Flavour,
    trusted: []const cidr.Range,
) Error!Claims {
    return switch (flavour) {
        .x_forwarded => read_x_forwarded(.{ .bytes = bytes, .lines = lines }, trusted),
        .forwarded => read_forwarded(.{ .bytes = bytes, .lines = lines }, trusted),
    };
}

/// The same for the value of a single field line, any bytes at all.
pub fn read_value(name: fields.Name, value: []const u8, trusted: []const cidr.Range) Error!Claims {
    const lines = [1]FieldLine{.{
        .name = .{},
        .value = .{ .start = 0, .len = @intCast(value.len) },
        .known = name,
    }};
    return read(value, &lines, flavour_of(name) orelse return .{}, trusted);
}

const Message = struct {
    bytes: []const u8,
    lines: []const FieldLine,

    fn list(self: Message, name: fields.Name) ListFromRight {
        return .{ .message = self, .name = name, .lines_left = self.lines.len };
    }
};

// ---- X-Forwarded-* ------------------------------------------------------------------------------

fn read_x_forwarded(message: Message, trusted: []const cidr.Range) Error!Claims {
    var claims: Claims = .{};
    // How many proxies have spoken, the one that named the client included.
    var hops: u32 = 0;
    var addresses = message.list(.x_forwarded_for);
    while (addresses.next()) |element| {
        hops += 1;
        const node = try Node.parse(element.of(message.bytes));
        claims.client = node.address;
        if (!node.is_in(trusted)) break;
    }
    // A proxy that replaces a field leaves one element in it, one that adds to it leaves as many as
    // there were proxies.
    const place = @max(hops, 1);
    if (message.list(.x_forwarded_proto).from_right(place)) |element| {
        claims.scheme = try parse_scheme(element.of(message.bytes));
    }
    if (message.list(.x_forwarded_host).from_right(place)) |element| {
        claims.host = try parse_host(message.bytes, element);
    }
    if (message.list(.x_forwarded_port).from_right(place)) |element| {
        const port = parse_port(element.of(message.bytes)) orelse return error.BadForwardedPort;
        if (port == 0) return error.BadForwardedPort;
        claims.port = port;
    }
    if (message.list(.x_forwarded_prefix).from_right(place)) |element| {
        claims.prefix = try parse_prefix(message.bytes, element);
    }
    return claims;
}

/// The elements of all field lines of one name, the last one first, without empty ones
/// (RFC 9110 5.6.1.2).
const ListFromRight = struct {
    message: Message,
    name: fields.Name,
    lines_left: usize,
    /// What is left of the current line; null when the line before it is next.
    rest: ?Span = null,

    fn next(self: *ListFromRight) ?Span {
        const bytes = self.message.bytes;
        while (true) {
            const rest = self.rest orelse {
                if (!self.next_line()) return null;
                continue;
            };
            const text = rest.of(bytes);
            const comma = std.mem.lastIndexOfScalar(u8, text, ',');
            self.rest = if (comma) |at| .{ .start = rest.start, .len = @intCast(at) } else null;
            const start: u32 = if (comma) |at| @intCast(at + 1) else 0;
            const element = trimmed(bytes, .{
                .start = rest.start + start,
                .len = rest.len - start,
            });
            if (element.len > 0) return element;
        }
    }

    fn next_line(self: *ListFromRight) bool {
        while (self.lines_left > 0) {
            self.lines_left -= 1;
            const line = &self.message.lines[self.lines_left];
            if (line.known != self.name) continue;
            self.rest = line.value;
            return true;
        }
        return false;
    }

    /// The element at this place from the right, 1 being the last one, or the first one of fewer.
    fn from_right(self: ListFromRight, place: u32) ?Span {
        var list = self;
        var found: ?Span = null;
        for (0..place) |_| found = list.next() orelse break;
        return found;
    }
};

fn trimmed(bytes: []const u8, span: Span) Span {
    var start = span.start;
    var end = span.start + span.len;
    while (start < end and scanner.is_whitespace(bytes[start])) start += 1;
    while (end > start and scanner.is_whitespace(bytes[end - 1])) end -= 1;
    return .{ .start = start, .len = end - start };
}

// ---- Forwarded (RFC 7239) -----------------------------------------------------------------------

/// From left to right, since a quoted string can only be read so; each element that no trusted
/// proxy stands behind begins the walk anew. The outcome is that of a walk from the right.
fn read_forwarded(message: Message, trusted: []const cidr.Range) Error!Claims {
    var chosen: ?Element = null;
    var client: ?sys.Address = null;
    // Matters only if the walk ends there.
    var is_bad = false;
    for (message.lines) |line| {
        if (line.known != .forwarded) continue;
        var reader: ElementReader = .{ .bytes = message.bytes, .line = line.value };
        while (try reader.next()) |element| {
            const text = if (element.node) |span| span.of(message.bytes) else null;
            const node: ?Node = if (text) |given| Node.parse(given) catch null else null;
            if (chosen != null and node != null and node.?.is_in(trusted)) {
                // The proxy that said nothing of its client is known by the one after it.
                if (client == null and !is_bad) client = node.?.address;
                continue;
            }
            chosen = element;
            client = if (node) |known| known.address else null;
            is_bad = text != null and node == null;
        }
    }
    const element = chosen orelse return .{};
    if (is_bad) return error.BadForwardedFor;
    var claims: Claims = .{ .client = client };
    if (element.proto) |span| claims.scheme = try parse_scheme(span.of(message.bytes));
    if (element.host) |span| {
        claims.host = try parse_host(message.bytes, span);
    }
    return claims;
}

/// A forwarded-element: the values of the parameters that matter here, without quotes.
const Element = struct {
    node: ?Span = null,
    proto: ?Span = null,
    host: ?Span = null,
    by: ?Span = null,
};

/// Takes a field line apart: 1#( [ pair ] *( ";" [ pair ] ) ), section 4. Whitespace round the
/// semicolon, which section 4 does not have, is what many proxies write.
const ElementReader = struct {
    bytes: []const u8,
    line: Span,
    /// How much of the line has been read.
    at: u32 = 0,

    /// The next element that holds anything; null at the end.
    fn next(self: *ElementReader) Error!?Element {
        var element: ?Element = null;
        while (true) {
            self.skip_whitespace();
            const byte = self.peek() orelse return element;
            if (byte == ',') {
                self.at += 1;
                if (element != null) return element;
            } else if (byte == ';') {
                self.at += 1;
            } else {
                if (element == null) element = .{};
                try self.read_pair(&element.?);
                self.skip_whitespace();
                const end = self.peek() orelse return element;
                if (end != ',' and end != ';') return error.BadForwarded;
            }
        }
    }

    fn read_pair(self: *ElementReader, element: *Element) Error!void {
        const name = self.take_while(scanner.is_token_byte).of(self.bytes);
        if (name.len == 0 or self.peek() != '=') return error.BadForwarded;
        self.at += 1;
        const place = parameter_of(element, name);
        const is_quoted = self.peek() == '"';
        const value = if (is_quoted)
            try self.read_quoted(place != null)
        else
            self.take_while(is_value_byte);
        if (value.len == 0 and !is_quoted) return error.BadForwarded;
        const parameter = place orelse return;
        // Section 4: "each parameter MUST NOT occur more than once per field-value".
        if (parameter.* != null) return error.BadForwarded;
        parameter.* = value;
    }

    /// What stands between the quotes, the first of which is next. No value that matters here
    /// needs a backslash, and RFC 9110 5.6.4 tells senders to use none then.
    fn read_quoted(self: *ElementReader, must_be_plain: bool) Error!Span {
        self.at += 1;
        const start = self.at;
        while (self.peek()) |byte| : (self.at += 1) {
            if (byte == '"') {
                const value = self.since(start);
                self.at += 1;
                return value;
            }
            if (byte != '\\') continue;
            if (must_be_plain) return error.BadForwarded;
            self.at += 1;
        }
        return error.BadForwarded;
    }

    fn peek(self: *const ElementReader) ?u8 {
        return if (self.at < self.line.len) self.line.of(self.bytes)[self.at] else null;
    }

    fn since(self: *const ElementReader, start: u32) Span {
        return .{ .start = self.line.start + start, .len = self.at - start };
    }

    fn take_while(self: *ElementReader, comptime belongs: fn (u8) callconv(.@"inline") bool) Span {
        const start = self.at;
        while (self.peek()) |byte| : (self.at += 1) if (!belongs(byte)) break;
        return self.since(start);
    }

    fn skip_whitespace(self: *ElementReader) void {
        _ = self.take_while(scanner.is_whitespace);
    }
};

/// A token, and what the values of `for` and `host` hold beside token bytes: they should be quoted
/// then, but many proxies do not, and nothing else could be meant.
inline fn is_value_byte(byte: u8) bool {
    return scanner.is_token_byte(byte) or byte == ':' or byte == '[' or byte == ']';
}

fn parameter_of(element: *Element, name: []const u8) ?*?Span {
    if (scanner.equals_ignoring_case(name, "for")) return &element.node;
    if (scanner.equals_ignoring_case(name, "proto")) return &element.proto;
    if (scanner.equals_ignoring_case(name, "host")) return &element.host;
    if (scanner.equals_ignoring_case(name, "by")) return &element.by;
    return null;
}

// ---- Values -------------------------------------------------------------------------------------

/// A node of RFC 7239 6, which covers what X-Forwarded-For holds; IPv6 also without brackets.
const Node = struct {
    /// Null for "unknown" and for an identifier that hides the address ("_hidden").
    ip: ?cidr.Ip,
    address: sys.Address,

    fn is_in(self: *const Node, ranges: []const cidr.Range) bool {
        return cidr.contains(ranges, self.ip orelse return false);
    }

    fn parse(text: []const u8) Error!Node {
        if (cidr.Ip.parse(text)) |ip| return .{ .ip = ip, .address = ip.address(0) };
        var name_end = scanner.find_byte(text, 0, ':');
        var ip: ?cidr.Ip = null;
        if (text.len > 0 and text[0] == '[') {
            const bracket = scanner.find_byte(text, 0, ']');
            if (bracket == text.len) return error.BadForwardedFor;
            ip = cidr.Ip.parse_ipv6(text[1..bracket]) orelse return error.BadForwardedFor;
            name_end = bracket + 1;
        } else if (!is_hidden(text[0..name_end])) {
            ip = cidr.Ip.parse_ipv4(text[0..name_end]) orelse return error.BadForwardedFor;
        }
        const port = try parse_node_port(text[name_end..]);
        return .{ .ip = ip, .address = if (ip) |known| known.address(port) else sys.no_address };
    }

    fn is_hidden(name: []const u8) bool {
        return scanner.equals_ignoring_case(name, "unknown") or is_obfuscated(name);
    }

    /// [ ":" ( 1*5DIGIT / obfuscated ) ]; 0 where no number is told.
    fn parse_node_port(text: []const u8) Error!u16 {
        if (text.len == 0) return 0;
        if (text[0] != ':') return error.BadForwardedFor;
        if (is_obfuscated(text[1..])) return 0;
        return parse_port(text[1..]) orelse error.BadForwardedFor;
    }
};

/// Section 6.3: "_" 1*( ALPHA / DIGIT / "." / "_" / "-" )
fn is_obfuscated(text: []const u8) bool {
    if (text.len < 2 or text[0] != '_') return false;
    for (text[1..]) |byte| {
        if (scanner.is_alphabetic(byte) or scanner.is_digit(byte)) continue;
        if (byte != '.' and byte != '_' and byte != '-') return false;
    }
    return true;
}

/// The scheme of a WebSocket's URI names the same connection: Traefik and others send "ws" and
/// "wss" with each request to upgrade (RFC 6455 section 3; the request is HTTP, section 4.1).
fn parse_scheme(text: []const u8) Error!Scheme {
    inline for (.{ "https", "wss" }) |secure| {
        if (scanner.equals_ignoring_case(text, secure)) return .https;
    }
    inline for (.{ "http", "ws" }) |plain| {
        if (scanner.equals_ignoring_case(text, plain)) return .http;
    }
    return error.BadForwardedProto;
}

/// The grammar of Host has a port 0, but no client came to it, and it would be SERVER_PORT.
fn parse_host(bytes: []const u8, value: Span) Error!Span {
    const authority = host.split(value.of(bytes)) orelse return error.BadForwardedHost;
    if (authority.port == 0) return error.BadForwardedHost;
    return value;
}

/// 1*5DIGIT up to 65535.
fn parse_port(digits: []const u8) ?u16 {
    if (digits.len == 0 or digits.len > 5) return null;
    var port: u32 = 0;
    for (digits) |byte| {
        if (!scanner.is_digit(byte)) return null;
        port = port * 10 + (byte - '0');
    }
    return std.math.cast(u16, port);
}

/// An absolute path of whole segments, without escapes: it becomes the start of URLs that the
/// application makes, where "//" would begin a host and ".." would lead elsewhere. A slash at the
/// end is left out (SCRIPT_NAME has none, RFC 3875 4.1.13).
fn parse_prefix(bytes: []const u8, element: Span) Error!Span {
    var prefix = element;
    if (bytes[prefix.start] != '/') return error.BadForwardedPrefix;
    if (bytes[prefix.start + prefix.len - 1] == '/') prefix.len -= 1;
    if (prefix.len == 0) return prefix;
    var segments = std.mem.splitScalar(u8, prefix.of(bytes)[1..], '/');
    while (segments.next()) |segment| {
        if (segment.len == 0) return error.BadForwardedPrefix;
        if (std.mem.eql(u8, segment, ".") or std.mem.eql(u8, segment, "..")) {
            return error.BadForwardedPrefix;
        }
        for (segment) |byte| if (!is_segment_byte(byte)) return error.BadForwardedPrefix;
    }
    return prefix;
}

/// RFC 3986 3.3: pchar without pct-encoded, and without the comma, which separates elements.
fn is_segment_byte(byte: u8) bool {
    if (scanner.is_alphabetic(byte) or scanner.is_digit(byte)) return true;
    return std.mem.indexOfScalar(u8, "-._~!$&'()*+;=:@", byte) != null;
}

const testing = std.testing;

fn ranges_of(comptime texts: anytype) [texts.len]cidr.Range {
    var ranges: [texts.len]cidr.Range = undefined;
    inline for (&ranges, texts) |*range, text| range.* = cidr.Range.parse(text).?;
    return ranges;
}

/// Field lines "name: value" as a parsed head has them.
const Lines = struct {
    storage: [8]FieldLine = undefined,
    count: usize = 0,
    bytes: []const u8,

    fn init(text: []const u8) Lines {
        var lines: Lines = .{ .bytes = text };
        var start: u32 = 0;
        while (start < text.len) {
            const end: u32 = @intCast(scanner.find_byte(text, start, '\n'));
            const colon: u32 = @intCast(scanner.find_byte(text[0..end], start, ':'));
            const value: Span = .{ .start = colon + 1, .len = end - colon - 1 };
            lines.storage[lines.count] = .{
                .name = .{ .start = start, .len = colon - start },
                .value = trimmed(text, value),
                .known = fields.lookup(text[start..colon]),
            };
            lines.count += 1;
            start = end + 1;
        }
        return lines;
    }

    fn read_as(self: *const Lines, flavour: Flavour, trusted: []const cidr.Range) Error!Claims {
        return read(self.bytes, self.storage[0..self.count], flavour, trusted);
    }
};

const Expected = struct {
    /// "address" or "address port"; "" for a hidden one.
    client: ?[]const u8 = null,
    scheme: ?Scheme = null,
    host: []const u8 = "",
    port: ?u16 = null,
    prefix: []const u8 = "",
};

fn expect_claims(flavour: Flavour, text: []const u8, expected: Expected) !void {
    errdefer std.debug.print("of {s}\n", .{text});
    const trusted = ranges_of(.{ "10.0.0.0/8", "fd00::/8" });
    const lines: Lines = .init(text);
    const claims = try lines.read_as(flavour, &trusted);
    try testing.expectEqual(expected.client == null, claims.client == null);
    if (claims.client) |address| {
        var storage: [sys.address_text_bytes_max]u8 = undefined;
        var buffer: [80]u8 = undefined;
        const name = sys.address_text(&address, &storage);
        const found = if (sys.address_port(&address)) |port|
            try std.fmt.bufPrint(&buffer, "{s} {d}", .{ name, port })
        else
            name;
        try testing.expectEqualStrings(expected.client.?, found);
    }
    try testing.expectEqual(expected.scheme, claims.scheme);
    try testing.expectEqualStrings(expected.host, claims.host.of(text));
    try testing.expectEqual(expected.port, claims.port);
    try testing.expectEqualStrings(expected.prefix, claims.prefix.of(text));
}

fn expect_refused(flavour: Flavour, text: []const u8, expected: Error) !void {
    errdefer std.debug.print("of {s}\n", .{text});
    const trusted = ranges_of(.{ "10.0.0.0/8", "fd00::/8" });
    const lines: Lines = .init(text);
    try testing.expectError(expected, lines.read_as(flavour, &trusted));
}

test "X-Forwarded-For is walked from the right past the trusted" {
    const cases = [_]struct { []const u8, ?[]const u8 }{
        .{ "X-Forwarded-For: 192.0.2.7", "192.0.2.7" },
        .{ "x-forwarded-for: 192.0.2.7, 10.0.0.1", "192.0.2.7" },
        .{ "X-Forwarded-For: 6.6.6.6, 192.0.2.7, 10.0.0.1,10.0.0.2", "192.0.2.7" },
        .{ "X-Forwarded-For: 6.6.6.6, 10.0.0.9, 192.0.2.7, 10.0.0.1", "192.0.2.7" },
        // Nothing but proxies: the one farthest away.
        .{ "X-Forwarded-For: 10.0.0.3, 10.0.0.2, 10.0.0.1", "10.0.0.3" },
        .{ "X-Forwarded-For: 6.6.6.6, 192.0.2.7\nX-Forwarded-For: 10.0.0.1", "192.0.2.7" },
        .{ "X-Forwarded-For: 6.6.6.6\nX-Forwarded-For: 192.0.2.7", "192.0.2.7" },
        .{ "X-Forwarded-For: 192.0.2.7\nA: b\nX-Forwarded-For:", "192.0.2.7" },
        .{ "X-Forwarded-For: , 192.0.2.7 ,, ,", "192.0.2.7" },
        .{ "X-Forwarded-For:", null },
        .{ "X-Forwarded-For: , ,", null },
        .{ "A: 192.0.2.7", null },
        // What is left of the client was never looked at.
        .{ "X-Forwarded-For: <script>, 192.0.2.7", "192.0.2.7" },
        .{ "X-Forwarded-For: 192.0.2.7:4711", "192.0.2.7 4711" },
        .{ "X-Forwarded-For: 192.0.2.7:4711, 10.0.0.1:80", "192.0.2.7 4711" },
        .{ "X-Forwarded-For: 2001:DB8::7", "2001:db8::7" },
        .{ "X-Forwarded-For: [2001:db8::7]", "2001:db8::7" },
        .{ "X-Forwarded-For: [2001:db8::7]:4711, fd00::1", "2001:db8::7 4711" },
        .{ "X-Forwarded-For: ::ffff:192.0.2.7, ::ffff:10.0.0.1", "192.0.2.7" },
        .{ "X-Forwarded-For: unknown", "" },
        .{ "X-Forwarded-For: 6.6.6.6, Unknown, 10.0.0.1", "" },
        .{ "X-Forwarded-For: 192.0.2.7:_port", "192.0.2.7" },
    };
    for (cases) |case| try expect_claims(.x_forwarded, case[0], .{ .client = case[1] });
}

test "X-Forwarded-For with something else for the client is refused" {
    const values = [_][]const u8{
        "localhost",    "192.0.2.256",       "192.0.2.7:",             "192.0.2.7:65536",
        "192.0.2.7:x",  "192.0.2.7:1:2",     "[192.0.2.7]",            "[2001:db8::7",
        "2001:db8::7]", "[2001:db8::7]x",    "[2001:db8::7]:",         "[2001:db8::7]:x",
        "fe80::1%eth0", "192.0.2.7 6.6.6.6", "\"192.0.2.7\"",          "for=192.0.2.7",
        "_",            "_hid den",          "192.0.2.7, x, 10.0.0.1", "[",
        ":",            "[]",
    };
    var buffer: [80]u8 = undefined;
    for (values) |value| {
        const text = try std.fmt.bufPrint(&buffer, "X-Forwarded-For: {s}", .{value});
        try expect_refused(.x_forwarded, text, error.BadForwardedFor);
    }
}

test "the other fields are those of the proxy that named the client" {
    try expect_claims(.x_forwarded, "X-Forwarded-Proto: https\n" ++
        "X-Forwarded-Host: a.example:8443\nX-Forwarded-Port: 8444\nX-Forwarded-Prefix: /app/", .{
        .scheme = .https,
        .host = "a.example:8443",
        .port = 8444,
        .prefix = "/app",
    });
    // One proxy, which added to what its client had forged.
    try expect_claims(.x_forwarded, "X-Forwarded-For: 6.6.6.6, 192.0.2.7\n" ++
        "X-Forwarded-Proto: https, http\nX-Forwarded-Host: evil.example, a.example\n" ++
        "X-Forwarded-Port: 1\nX-Forwarded-Port: 80\nX-Forwarded-Prefix: /evil,/app", .{
        .client = "192.0.2.7",
        .scheme = .http,
        .host = "a.example",
        .port = 80,
        .prefix = "/app",
    });
    // Two proxies: the outer one's word counts, if there are as many.
    try expect_claims(.x_forwarded, "X-Forwarded-For: 192.0.2.7, 10.0.0.1\n" ++
        "X-Forwarded-Proto: http, https, http\nX-Forwarded-Host: a.example", .{
        .client = "192.0.2.7",
        .scheme = .https,
        .host = "a.example",
    });
    try expect_claims(.x_forwarded, "Forwarded: for=6.6.6.6;proto=https", .{});
    try expect_claims(.forwarded, "X-Forwarded-For: 6.6.6.6\nX-Forwarded-Proto: https", .{});
}

test "values that would be believed must be valid" {
    const cases = [_]struct { []const u8, Error }{
        .{ "X-Forwarded-Proto: ftp", error.BadForwardedProto },
        .{ "X-Forwarded-Proto: https:", error.BadForwardedProto },
        .{ "X-Forwarded-Host: a b", error.BadForwardedHost },
        .{ "X-Forwarded-Host: http://a", error.BadForwardedHost },
        .{ "X-Forwarded-Host: a:b", error.BadForwardedHost },
        .{ "X-Forwarded-Host: a:0", error.BadForwardedHost },
        .{ "X-Forwarded-Host: [::1]:000", error.BadForwardedHost },
        .{ "X-Forwarded-Host: a:65536", error.BadForwardedHost },
        // Also where the port is told elsewhere: HTTP_HOST would have it.
        .{ "X-Forwarded-Host: a:0\nX-Forwarded-Port: 80", error.BadForwardedHost },
        .{ "X-Forwarded-Port: 0", error.BadForwardedPort },
        .{ "X-Forwarded-Port: 65536", error.BadForwardedPort },
        .{ "X-Forwarded-Port: -1", error.BadForwardedPort },
        .{ "X-Forwarded-Port: 080443", error.BadForwardedPort },
        .{ "X-Forwarded-Prefix: app", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: //evil.example", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: //", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /a//b", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /a//", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /a/../b", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /..", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /./a", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /a?b", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /a#b", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /a b", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /%2e%2e", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /a\\b", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: /\xc3\xa9", error.BadForwardedPrefix },
        .{ "X-Forwarded-Prefix: http://a/b", error.BadForwardedPrefix },
    };
    for (cases) |case| try expect_refused(.x_forwarded, case[0], case[1]);
    try expect_claims(.x_forwarded, "X-Forwarded-Prefix: /", .{});
    try expect_claims(.x_forwarded, "X-Forwarded-Prefix: /~a.b-c_d/$e:@!&'()*+;=", .{
        .prefix = "/~a.b-c_d/$e:@!&'()*+;=",
    });
    try expect_claims(.x_forwarded, "X-Forwarded-Proto: HTTPS", .{ .scheme = .https });
}

test "the schemes of WebSockets mean those of the HTTP request that begins one" {
    const cases = [_]struct { []const u8, ?Scheme }{
        .{ "ws", .http },     .{ "wss", .https }, .{ "WS", .http }, .{ "Wss", .https },
        .{ "http", .http },   .{ "wsss", null },  .{ "w", null },   .{ "ws:", null },
        .{ "https", .https },
    };
    var buffer: [80]u8 = undefined;
    for (cases) |case| {
        const proto = try std.fmt.bufPrint(&buffer, "X-Forwarded-Proto: {s}", .{case[0]});
        if (case[1]) |scheme| {
            try expect_claims(.x_forwarded, proto, .{ .scheme = scheme });
        } else {
            try expect_refused(.x_forwarded, proto, error.BadForwardedProto);
        }
        const quoted = try std.fmt.bufPrint(&buffer, "Forwarded: proto=\"{s}\"", .{case[0]});
        if (case[1]) |scheme| {
            try expect_claims(.forwarded, quoted, .{ .scheme = scheme });
        } else {
            try expect_refused(.forwarded, quoted, error.BadForwardedProto);
        }
    }
    // As Traefik sends it with an upgrade.
    try expect_claims(.x_forwarded, "X-Forwarded-For: 192.0.2.7\nX-Forwarded-Proto: wss\n" ++
        "X-Forwarded-Port: 443", .{ .client = "192.0.2.7", .scheme = .https, .port = 443 });
    try expect_claims(.forwarded, "Forwarded: for=192.0.2.7;proto=wss", .{
        .client = "192.0.2.7",
        .scheme = .https,
    });
}

test "Forwarded is walked from the right past the trusted" {
    const cases = [_]struct { []const u8, Expected }{
        .{ "for=192.0.2.7", .{ .client = "192.0.2.7" } },
        .{ "For=\"192.0.2.7:4711\"", .{ .client = "192.0.2.7 4711" } },
        .{ "FOR=\"[2001:db8::7]\"", .{ .client = "2001:db8::7" } },
        .{ "for=\"[2001:db8::7]:4711\"", .{ .client = "2001:db8::7 4711" } },
        .{ "for=[2001:db8::7]:4711", .{ .client = "2001:db8::7 4711" } },
        .{ "for=192.0.2.7;proto=https;by=203.0.113.43", .{
            .client = "192.0.2.7",
            .scheme = .https,
        } },
        .{ "for=192.0.2.7; proto=HTTP ;host=\"a.example:8080\"", .{
            .client = "192.0.2.7",
            .scheme = .http,
            .host = "a.example:8080",
        } },
        .{ "for=6.6.6.6;host=evil.example, for=192.0.2.7;host=a.example, for=10.0.0.1;host=b", .{
            .client = "192.0.2.7",
            .host = "a.example",
        } },
        .{ "for=10.0.0.2;proto=https, for=10.0.0.1", .{ .client = "10.0.0.2", .scheme = .https } },
        .{ "for=unknown", .{ .client = "" } },
        .{ "for=_hidden, for=10.0.0.1", .{ .client = "" } },
        .{ "for=\"_SEVKISEK:_port\"", .{ .client = "" } },
        .{ "for=6.6.6.6, for=unknown;proto=https", .{ .client = "", .scheme = .https } },
        // The outer proxy does not say for whom: it is known itself, by the one behind it.
        .{ "for=6.6.6.6, proto=https, for=10.0.0.1, for=10.0.0.2", .{
            .client = "10.0.0.1",
            .scheme = .https,
        } },
        .{ "proto=https;host=a.example", .{ .scheme = .https, .host = "a.example" } },
        .{ "", .{} },
        .{ ", ,", .{} },
        .{ ";", .{} },
        .{ ", for=192.0.2.7;, ;", .{ .client = "192.0.2.7" } },
        .{ "for=192.0.2.7;secret=\"a, for=6.6.6.6 \\\" b\"", .{ .client = "192.0.2.7" } },
        .{ "secret=\"\";for=192.0.2.7", .{ .client = "192.0.2.7" } },
        .{ "for=nonsense, for=192.0.2.7", .{ .client = "192.0.2.7" } },
        .{ "for=192.0.2.7\nForwarded: for=10.0.0.1", .{ .client = "192.0.2.7" } },
        .{ "for=6.6.6.6\nForwarded:\nForwarded: for=192.0.2.7", .{ .client = "192.0.2.7" } },
    };
    var buffer: [200]u8 = undefined;
    for (cases) |case| {
        const text = try std.fmt.bufPrint(&buffer, "Forwarded: {s}", .{case[0]});
        try expect_claims(.forwarded, text, case[1]);
    }
}

test "a Forwarded field that is none is refused" {
    const cases = [_]struct { []const u8, Error }{
        .{ "for", error.BadForwarded },
        .{ "for=", error.BadForwarded },
        .{ "=192.0.2.7", error.BadForwarded },
        .{ "for =192.0.2.7", error.BadForwarded },
        .{ "for= 192.0.2.7", error.BadForwarded },
        .{ "for=192.0.2.7 proto=https", error.BadForwarded },
        .{ "for=192.0.2.7;for=6.6.6.6", error.BadForwarded },
        .{ "for=192.0.2.7;FOR=192.0.2.7", error.BadForwarded },
        .{ "for=\"192.0.2.7", error.BadForwarded },
        .{ "for=\"192.0.2.7\\", error.BadForwarded },
        .{ "for=\"192.0.2.7\\\"", error.BadForwarded },
        .{ "for=192.0.2.7\"x\"", error.BadForwarded },
        .{ "for=\"192.0.2.7\"x", error.BadForwarded },
        .{ "for=\"192.0.2.\\7\"", error.BadForwarded },
        .{ "for=a/b", error.BadForwarded },
        .{ "f\xc3\xb6r=192.0.2.7", error.BadForwarded },
        // A client's quote must not swallow what a proxy adds.
        .{ "for=\"6.6.6.6, for=192.0.2.7", error.BadForwarded },
        .{ "for=\"\"", error.BadForwardedFor },
        .{ "for=nonsense", error.BadForwardedFor },
        .{ "for=192.0.2.7, for=nonsense, for=10.0.0.1", error.BadForwardedFor },
        .{ "for=\"[192.0.2.7]\"", error.BadForwardedFor },
        .{ "for=192.0.2.7;proto=gopher", error.BadForwardedProto },
        .{ "for=192.0.2.7;proto=\"\"", error.BadForwardedProto },
        .{ "for=192.0.2.7;host=\"a b\"", error.BadForwardedHost },
        .{ "for=192.0.2.7;host=\"\"", error.BadForwardedHost },
        .{ "for=192.0.2.7;host=\"a:0\"", error.BadForwardedHost },
    };
    var buffer: [200]u8 = undefined;
    for (cases) |case| {
        const text = try std.fmt.bufPrint(&buffer, "Forwarded: {s}", .{case[0]});
        try expect_refused(.forwarded, text, case[1]);
    }
}

test "the server's port is that of the URL, unless a proxy says so itself" {
    const bytes = "a.example:8443 b.example";
    const with_port: Span = .{ .start = 0, .len = 14 };
    const without: Span = .{ .start = 15, .len = 9 };
    const cases = [_]struct { Claims, []const u8, ?u16 }{
        .{ .{}, "c:1", null },
        .{ .{ .client = sys.no_address }, "c:1", null },
        .{ .{ .port = 5, .scheme = .https, .host = with_port }, "c:1", 5 },
        .{ .{ .scheme = .https, .host = with_port }, "c:1", 8443 },
        .{ .{ .scheme = .https, .host = without }, "c:1", 443 },
        .{ .{ .host = without }, "c:1", 80 },
        .{ .{ .scheme = .https }, "c:1", 1 },
        .{ .{ .scheme = .https }, "c", 443 },
        .{ .{ .scheme = .https }, "", 443 },
        .{ .{ .scheme = .http }, "[::1]", 80 },
    };
    for (cases) |case| {
        try testing.expectEqual(case[2], case[0].server_port(bytes, case[1]));
    }
}

test "which fields are forwarded ones" {
    try testing.expectEqual(.x_forwarded, flavour_of(.x_forwarded_ssl));
    try testing.expectEqual(.forwarded, flavour_of(.forwarded));
    try testing.expectEqual(null, flavour_of(.x_real_ip));
    // Every name of the table that looks like one is one.
    for (0..fields.known_count) |index| {
        const name: fields.Name = @enumFromInt(index);
        const expected = is_x_forwarded(fields.wire_name(name));
        try testing.expectEqual(expected, flavour_of(name) == .x_forwarded);
    }
    try testing.expect(is_x_forwarded("X-Forwarded-User"));
    try testing.expect(is_x_forwarded("x-forwarded-"));
    try testing.expect(!is_x_forwarded("X-Forwarded"));
    try testing.expect(!is_x_forwarded("Forwarded"));
}

test "any bytes are answered without a panic" {
    var random_source = std.Random.DefaultPrng.init(0x7239);
    const random = random_source.random();
    const trusted = ranges_of(.{"10.0.0.0/8"});
    const words = [_][]const u8{
        "for=", "proto=", "host=", "by=", "https", "10.0.0.1", "192.0.2.7", "[::1]", "\"", "\\",
        ", ",   ";",      ":",     "/a",  "..",    "_x",       "unknown",   "=",     " ",  "\xff",
        "\x00", "80",     "[",     "]",
    };
    const names = [_]fields.Name{
        .forwarded,        .x_forwarded_for,  .x_forwarded_proto,
        .x_forwarded_host, .x_forwarded_port, .x_forwarded_prefix,
    };
    var buffer: [120]u8 = undefined;
    var believed: u32 = 0;
    for (0..100_000) |_| {
        var length: usize = 0;
        for (0..random.uintAtMost(usize, 12)) |_| {
            const word = words[random.uintLessThan(usize, words.len)];
            @memcpy(buffer[length..][0..word.len], word);
            length += word.len;
        }
        const value = buffer[0..length];
        const name = names[random.uintLessThan(usize, names.len)];
        const claims = read_value(name, value, &trusted) catch continue;
        believed += 1;
        if (claims.host.len > 0) try testing.expect(host.valid(claims.host.of(value)));
        if (claims.prefix.len > 0) try testing.expectEqual('/', claims.prefix.of(value)[0]);
        _ = claims.server_port(value, value);
    }
    try testing.expect(believed > 1000);
}

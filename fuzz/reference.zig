//! A second reading of RFC 9112's grammar, for fuzz targets to compare with: whole messages, line
//! by line, slow and plain. It shares no code with the parsers but the grammar of Host, which has
//! no state to get wrong.
//!
//! Data: borrows its arguments. Thread: any. GIL: not needed.

const std = @import("std");
const core = @import("core");

/// How a message that is all there reads. What is not all there is `unfinished`, though it may be
/// wrong already.
pub const Reading = union(enum) { unfinished, invalid, valid: usize };

pub fn is_tchar(byte: u8) bool {
    return switch (byte) {
        '0'...'9', 'A'...'Z', 'a'...'z' => true,
        else => std.mem.indexOfScalar(u8, "!#$%&'*+-.^_`|~", byte) != null,
    };
}

pub fn is_token(text: []const u8) bool {
    for (text) |byte| if (!is_tchar(byte)) return false;
    return text.len > 0;
}

/// RFC 9110 5.5: field-vchar, spaces and tabs; obs-text too.
pub fn is_field_text(text: []const u8) bool {
    for (text) |byte| if (byte != '\t' and std.ascii.isControl(byte)) return false;
    return true;
}

pub fn trim(text: []const u8) []const u8 {
    return std.mem.trim(u8, text, " \t");
}

/// RFC 9112 2 to 6 and the limit on field lines; `valid` gives the length of the head.
pub fn read_head(bytes: []const u8, field_lines_max: usize) Reading {
    const start: usize = if (std.mem.startsWith(u8, bytes, "\r\n")) 2 else 0;
    const end = std.mem.indexOfPos(u8, bytes, start, "\r\n\r\n") orelse return .unfinished;
    var lines = std.mem.splitSequence(u8, bytes[start..end], "\r\n");
    const request_line = lines.first();
    const version = read_request_line(request_line) orelse return .invalid;
    var facts: HeadFacts = .{ .version_0 = version == '0' };
    var count: usize = 0;
    while (lines.next()) |line| {
        count += 1;
        if (count > field_lines_max or !facts.take(line)) return .invalid;
    }
    if (!facts.version_0 and facts.hosts == 0) return .invalid;
    if (read_framing(facts.version_0, facts.lengths.slice(), facts.codings.slice()) == null) {
        return .invalid;
    }
    return .{ .valid = end + 4 };
}

/// The minor version's digit; null when the line is wrong.
fn read_request_line(line: []const u8) ?u8 {
    var parts = std.mem.splitScalar(u8, line, ' ');
    const method = parts.first();
    const target = parts.next() orelse return null;
    const version = parts.next() orelse return null;
    if (parts.next() != null) return null;
    if (!is_token(method) or !is_target(target, method)) return null;
    if (version.len != 8 or !std.mem.startsWith(u8, version, "HTTP/1.")) return null;
    return if (std.ascii.isDigit(version[7])) version[7] else null;
}

fn is_target(target: []const u8, method: []const u8) bool {
    if (target.len == 0) return false;
    for (target) |byte| if (byte < 0x21 or byte > 0x7e or byte == '#') return false;
    if (std.mem.eql(u8, method, "CONNECT")) {
        const authority = core.host.split(target) orelse return false;
        return authority.port != null;
    }
    if (target[0] == '/') return true;
    if (std.mem.eql(u8, target, "*")) return std.mem.eql(u8, method, "OPTIONS");
    const colon = std.mem.indexOf(u8, target, "://") orelse return false;
    const scheme = target[0..colon];
    if (!std.ascii.eqlIgnoreCase(scheme, "http") and !std.ascii.eqlIgnoreCase(scheme, "https")) {
        return false;
    }
    const rest = target[colon + 3 ..];
    return core.host.valid(rest[0 .. std.mem.indexOfAny(u8, rest, "/?") orelse rest.len]);
}

/// Values of one field: nothing asks for more than two of them.
const Values = struct {
    items: [2][]const u8 = .{ "", "" },
    count: usize = 0,

    fn add(self: *Values, value: []const u8) void {
        self.items[@min(self.count, 1)] = value;
        self.count = @min(self.count + 1, 2);
    }

    fn slice(self: *const Values) []const []const u8 {
        return self.items[0..self.count];
    }
};

const HeadFacts = struct {
    version_0: bool,
    hosts: usize = 0,
    lengths: Values = .{},
    codings: Values = .{},

    /// False when the line is wrong, or wrong beside those before it.
    fn take(self: *HeadFacts, line: []const u8) bool {
        const colon = std.mem.indexOfScalar(u8, line, ':') orelse return false;
        const name = line[0..colon];
        const value = trim(line[colon + 1 ..]);
        if (!is_token(name) or !is_field_text(value)) return false;
        if (std.ascii.eqlIgnoreCase(name, "host")) {
            self.hosts += 1;
            return self.hosts == 1 and core.host.valid(value);
        }
        if (std.ascii.eqlIgnoreCase(name, "content-length")) self.lengths.add(value);
        if (std.ascii.eqlIgnoreCase(name, "transfer-encoding")) self.codings.add(value);
        if (!std.ascii.eqlIgnoreCase(name, "expect")) return true;
        return read_expect(value) != null;
    }
};

/// Whether a field line expects 100-continue, or nothing at all. Null for all else.
pub fn read_expect(value: []const u8) ?bool {
    var expects = false;
    var members = std.mem.splitScalar(u8, value, ',');
    while (members.next()) |member| {
        const word = trim(member);
        if (word.len == 0) continue;
        if (expects or !std.ascii.eqlIgnoreCase(word, "100-continue")) return null;
        expects = true;
    }
    return expects;
}

pub const Length = union(enum) { none, bytes: u64, chunked };

/// RFC 9112 6.3 without a doubt left: one Content-Length of digits, or the one coding "chunked" in
/// HTTP/1.1, or neither. Null for all else.
pub fn read_framing(
    version_0: bool,
    lengths: []const []const u8,
    codings: []const []const u8,
) ?Length {
    if (lengths.len + codings.len > 1) return null;
    if (lengths.len == 1) {
        const value = lengths[0];
        if (value.len == 0) return null;
        for (value) |byte| if (!std.ascii.isDigit(byte)) return null;
        const digits = std.mem.trimLeft(u8, value, "0");
        if (digits.len > 19) return null;
        var number: u128 = 0;
        for (digits) |byte| number = number * 10 + (byte - '0');
        if (number > std.math.maxInt(i64)) return null;
        return .{ .bytes = @intCast(number) };
    }
    if (codings.len == 1) {
        if (version_0 or !std.ascii.eqlIgnoreCase(trim(codings[0]), "chunked")) return null;
        return .chunked;
    }
    return .none;
}

/// What a chunked body holds. Each buffer is as long as the body as coded, at least.
pub const Decoded = struct {
    data: []u8,
    data_len: usize = 0,
    /// The field lines that are kept, each with its CRLF.
    trailers: []u8,
    trailers_len: usize = 0,
};

/// RFC 9112 7.1, without limits; `valid` gives the length of the body as coded.
pub fn read_chunked(bytes: []const u8, decoded: *Decoded) Reading {
    var rest: []const u8 = bytes;
    decoded.data_len = 0;
    decoded.trailers_len = 0;
    while (true) {
        const line_end = std.mem.indexOf(u8, rest, "\r\n") orelse return .unfinished;
        const size = read_size_line(rest[0..line_end]) orelse return .invalid;
        rest = rest[line_end + 2 ..];
        if (size == 0) break;
        if (rest.len < size or rest.len - size < 2) return .unfinished;
        const chunk_len: usize = @intCast(size);
        if (!std.mem.eql(u8, rest[chunk_len..][0..2], "\r\n")) return .invalid;
        @memcpy(decoded.data[decoded.data_len..][0..chunk_len], rest[0..chunk_len]);
        decoded.data_len += chunk_len;
        rest = rest[chunk_len + 2 ..];
    }
    while (true) {
        const line_end = std.mem.indexOf(u8, rest, "\r\n") orelse return .unfinished;
        const line = rest[0..line_end];
        const whole_line = rest[0 .. line_end + 2];
        rest = rest[line_end + 2 ..];
        if (line.len == 0) return .{ .valid = bytes.len - rest.len };
        const rule = trailer_rule_of(line) orelse return .invalid;
        if (rule == .refused) return .invalid;
        if (rule == .discarded) continue;
        @memcpy(decoded.trailers[decoded.trailers_len..][0..whole_line.len], whole_line);
        decoded.trailers_len += whole_line.len;
    }
}

/// What becomes of a line of the trailer section; null when it is no field line.
pub fn trailer_rule_of(line: []const u8) ?core.trailer_fields.Rule {
    const colon = std.mem.indexOfScalar(u8, line, ':') orelse return null;
    const name = line[0..colon];
    if (!is_token(name) or !is_field_text(line[colon + 1 ..])) return null;
    // Some of each kind by hand; the table of the rest has its own tests.
    inline for (.{ "content-length", "transfer-encoding", "host", "connection", "te" }) |word| {
        if (std.ascii.eqlIgnoreCase(name, word)) return .refused;
    }
    inline for (.{ "content-type", "content-encoding", "vary" }) |word| {
        if (std.ascii.eqlIgnoreCase(name, word)) return .discarded;
    }
    return core.trailer_fields.rule_of(name);
}

/// chunk-size [ chunk-ext ]; null when it is wrong.
fn read_size_line(line: []const u8) ?u64 {
    var digits: usize = 0;
    while (digits < line.len and std.ascii.isHex(line[digits])) digits += 1;
    if (digits == 0 or digits > 16) return null;
    const size = std.fmt.parseInt(u64, line[0..digits], 16) catch return null;
    if (size > std.math.maxInt(i64)) return null;
    return if (is_extensions(line[digits..])) size else null;
}

/// *( ";" BWS chunk-ext-name [ "=" ( token / quoted-string ) ] )
fn is_extensions(text: []const u8) bool {
    var rest = text;
    while (rest.len > 0) {
        if (rest[0] != ';') return false;
        rest = std.mem.trimLeft(u8, rest[1..], " \t");
        const name_len = token_len(rest);
        if (name_len == 0) return false;
        rest = rest[name_len..];
        if (rest.len == 0 or rest[0] != '=') continue;
        rest = rest[1..];
        const value_len = @max(token_len(rest), quoted_len(rest));
        if (value_len == 0) return false;
        rest = rest[value_len..];
    }
    return true;
}

fn token_len(text: []const u8) usize {
    for (text, 0..) |byte, index| if (!is_tchar(byte)) return index;
    return text.len;
}

fn quoted_len(text: []const u8) usize {
    if (text.len < 2 or text[0] != '"') return 0;
    var at: usize = 1;
    while (at < text.len) : (at += 1) {
        if (!is_field_text(text[at..][0..1])) return 0;
        if (text[at] == '"') return at + 1;
        if (text[at] == '\\') {
            at += 1;
            if (at == text.len or !is_field_text(text[at..][0..1])) return 0;
        }
    }
    return 0;
}

//! Decoder of the chunked coding (RFC 9112 7.1). Fed with whatever has come, it writes the data of
//! the chunks and keeps its place, down to the middle of a chunk size. Framing bytes go one by one
//! through a state machine, data in bulk. As strict as the request head, and for the same reason:
//! what two recipients could read in two ways lets one request hide in another.
//!
//! Data: owns its state; input and output are the caller's, and so is the memory for the trailer
//! section. Thread: whichever owns the connection. GIL: not needed.

const std = @import("std");
const assert = std.debug.assert;
const scanner = @import("scanner.zig");
const trailer_fields = @import("trailer_fields.zig");

/// Sixteen digits are 64 bits; more are leading zeros at best.
pub const size_digits_max = 16;
/// As for Content-Length: file offsets and Python's ssize_t are signed.
pub const chunk_bytes_max = std.math.maxInt(i64);
/// Extensions of one chunk; nothing known needs more than a signature of about 90 bytes.
pub const extension_bytes_max = 1024;
/// Extensions of the whole body may be longer than its data by so much. Else a client could keep
/// the server reading for ever without body_bytes_max taking notice.
pub const extension_bytes_excess_max = 16 * 1024;

pub const Error = error{
    BadChunkSize,
    ChunkSizeTooLarge,
    BadChunkExtension,
    ChunkExtensionTooLong,
    BadChunkEnd,
    BadTrailer,
    ForbiddenTrailer,
    TrailerTooLarge,
    ObsoleteFolding,
    BareCarriageReturn,
    BareLineFeed,
    ControlCharacter,
};

/// The status code that answers a request refused for this.
pub fn status_of(err: Error) u16 {
    return switch (err) {
        error.TrailerTooLarge => 431,
        error.BadChunkSize,
        error.ChunkSizeTooLarge,
        error.BadChunkExtension,
        error.ChunkExtensionTooLong,
        error.BadChunkEnd,
        error.BadTrailer,
        error.ForbiddenTrailer,
        error.ObsoleteFolding,
        error.BareCarriageReturn,
        error.BareLineFeed,
        error.ControlCharacter,
        => 400,
    };
}

/// One word for the log and for the metric's label; the same as a request head's for the same
/// mistake.
pub fn reason_of(err: Error) []const u8 {
    return switch (err) {
        error.BadChunkSize => "bad_chunk_size",
        error.ChunkSizeTooLarge => "chunk_size_too_large",
        error.BadChunkExtension => "bad_chunk_extension",
        error.ChunkExtensionTooLong => "chunk_extension_too_long",
        error.BadChunkEnd => "bad_chunk_end",
        error.BadTrailer => "bad_trailer",
        error.ForbiddenTrailer => "forbidden_trailer",
        error.TrailerTooLarge => "trailer_too_large",
        error.ObsoleteFolding => "obsolete_folding",
        error.BareCarriageReturn => "bare_cr",
        error.BareLineFeed => "bare_lf",
        error.ControlCharacter => "control_character",
    };
}

pub const Options = struct {
    /// Where the field lines of the trailer section are copied, for trailer_section(). When it is
    /// empty they are checked and dropped; else its length bounds them, too.
    trailer_buffer: []u8 = &.{},
    /// Field lines with their CRLFs, discarded ones too. More is 431.
    trailer_bytes_max: u32 = 8 * 1024,
    trailer_lines_max: u16 = 32,
};

pub const Progress = struct {
    /// Bytes of the input that are done with.
    consumed: usize,
    /// Bytes of data in the output.
    produced: usize,
    /// The body has ended, at `consumed`; what follows belongs to the next request.
    done: bool,
};

const State = enum(u8) {
    /// First digit of a chunk size.
    size_start,
    size,
    /// After ";", with the whitespace that may follow it.
    extension_start,
    extension_name,
    /// After "=".
    extension_value_start,
    extension_token,
    extension_quoted,
    /// After a backslash in a quoted string.
    extension_escaped,
    /// After a quoted string.
    extension_end,
    /// LF that ends the line of the chunk size.
    size_line_feed,
    data,
    data_carriage_return,
    data_line_feed,
    /// First byte of a trailer field line, or of the empty line that ends the body.
    trailer_start,
    trailer_name,
    trailer_value,
    trailer_line_feed,
    /// LF that ends the body.
    last_line_feed,
    done,
    /// Poisoned: feed repeats `failure`.
    failed,
};

pub const Decoder = struct {
    options: Options,
    state: State = .size_start,
    failure: Error = error.BadChunkSize,
    /// Of the chunk being read: its size so far, then what of its data is still to come.
    remaining: u64 = 0,
    size_digits: u8 = 0,
    /// Of the chunk being read.
    extension_bytes: u16 = 0,
    /// Of the whole body.
    extension_bytes_total: u64 = 0,
    data_bytes_total: u64 = 0,
    trailer_bytes: u32 = 0,
    trailer_lines: u16 = 0,
    /// Of these, what is in the trailer_buffer, and where the line that is being read begins there.
    trailer_bytes_kept: u32 = 0,
    trailer_line_start: u32 = 0,
    /// That line is discarded.
    discards_line: bool = false,
    /// As much of that line's name as tells what becomes of it.
    name_buffer: [trailer_fields.name_bytes_max]u8 = undefined,
    name_len: u8 = 0,

    pub fn init(options: Options) Decoder {
        return .{ .options = options };
    }

    /// Decodes from `input` into `output` until one of them or the body ends. In place, `output`
    /// begins where `input` does, or before. What a call that fails had written is lost.
    pub fn feed(self: *Decoder, input: []const u8, output: []u8) Error!Progress {
        return self.advance(input, output) catch |err| {
            self.state = .failed;
            self.failure = err;
            return err;
        };
    }

    /// Data of the body that is known to come or has come: for refusing a body that will be too
    /// long before it is read.
    pub fn bytes_announced(self: *const Decoder) u64 {
        return switch (self.state) {
            .data => self.data_bytes_total +| self.remaining,
            else => self.data_bytes_total,
        };
    }

    /// The trailer section's field lines as they came, without those that are discarded, each with
    /// its CRLF, once feed has said `done`. In the trailer_buffer.
    pub fn trailer_section(self: *const Decoder) []const u8 {
        if (self.state != .done or self.options.trailer_buffer.len == 0) return "";
        return self.options.trailer_buffer[0..self.trailer_bytes_kept];
    }

    fn advance(self: *Decoder, input: []const u8, output: []u8) Error!Progress {
        var consumed: usize = 0;
        var produced: usize = 0;
        while (self.state != .done) {
            const left = input[consumed..];
            if (self.state == .data) {
                const room = output[produced..];
                const data_bytes: usize = @intCast(@min(self.remaining, left.len, room.len));
                if (data_bytes == 0) break;
                if (room.ptr != left.ptr) @memmove(room[0..data_bytes], left[0..data_bytes]);
                consumed += data_bytes;
                produced += data_bytes;
                self.data_bytes_total +|= data_bytes;
                self.remaining -= data_bytes;
                if (self.remaining == 0) self.state = .data_carriage_return;
                continue;
            }
            if (left.len == 0) break;
            try self.step(left[0]);
            consumed += 1;
        }
        assert(produced <= consumed);
        return .{ .consumed = consumed, .produced = produced, .done = self.state == .done };
    }

    fn step(self: *Decoder, byte: u8) Error!void {
        switch (self.state) {
            .size_start, .size => try self.step_size(byte),
            .extension_start,
            .extension_name,
            .extension_value_start,
            .extension_token,
            .extension_quoted,
            .extension_escaped,
            .extension_end,
            => try self.step_extension(byte),
            .size_line_feed => {
                if (byte != '\n') return error.BareCarriageReturn;
                self.begin_data();
            },
            .data_carriage_return => {
                if (byte == '\n') return error.BareLineFeed;
                if (byte != '\r') return error.BadChunkEnd;
                self.state = .data_line_feed;
            },
            .data_line_feed => {
                if (byte != '\n') return error.BareCarriageReturn;
                self.state = .size_start;
            },
            .trailer_start,
            .trailer_name,
            .trailer_value,
            .trailer_line_feed,
            .last_line_feed,
            => try self.step_trailer(byte),
            .failed => return self.failure,
            // Data goes in bulk, and nothing follows the end.
            .data, .done => {},
        }
    }

    /// chunk-size = 1*HEXDIG, then CRLF or an extension at once: the whitespace that RFC 9112
    /// 7.1.1 calls "bad" is refused before the semicolon.
    fn step_size(self: *Decoder, byte: u8) Error!void {
        if (scanner.hex_value(byte)) |digit| {
            if (self.size_digits == size_digits_max) return error.ChunkSizeTooLarge;
            if (self.remaining > chunk_bytes_max >> 4) return error.ChunkSizeTooLarge;
            self.remaining = self.remaining << 4 | digit;
            self.size_digits += 1;
            self.state = .size;
            return;
        }
        if (byte == '\n') return error.BareLineFeed;
        if (self.state == .size_start) return error.BadChunkSize;
        switch (byte) {
            '\r' => self.state = .size_line_feed,
            ';' => {
                self.state = .extension_start;
                try self.count_extension_byte();
            },
            else => return error.BadChunkSize,
        }
    }

    fn begin_data(self: *Decoder) void {
        self.size_digits = 0;
        self.extension_bytes = 0;
        self.state = if (self.remaining == 0) .trailer_start else .data;
    }

    /// chunk-ext = *( ";" BWS chunk-ext-name [ "=" ( token / quoted-string ) ] )
    fn step_extension(self: *Decoder, byte: u8) Error!void {
        if (byte == '\n') return error.BareLineFeed;
        if (scanner.is_control(byte) and byte != '\r') return error.ControlCharacter;
        if (byte != '\r') try self.count_extension_byte();
        const is_token_byte = scanner.is_token_byte(byte);
        self.state = switch (self.state) {
            .extension_start => if (scanner.is_whitespace(byte))
                .extension_start
            else if (is_token_byte)
                .extension_name
            else
                return error.BadChunkExtension,
            .extension_name => if (is_token_byte)
                .extension_name
            else if (byte == '=')
                .extension_value_start
            else
                try after_extension(byte),
            .extension_value_start => if (is_token_byte)
                .extension_token
            else if (byte == '"')
                .extension_quoted
            else
                return error.BadChunkExtension,
            .extension_token => if (is_token_byte) .extension_token else try after_extension(byte),
            .extension_quoted => switch (byte) {
                '"' => .extension_end,
                '\\' => .extension_escaped,
                '\r' => return error.BadChunkExtension,
                else => .extension_quoted,
            },
            .extension_escaped => if (byte == '\r')
                return error.BadChunkExtension
            else
                .extension_quoted,
            .extension_end => try after_extension(byte),
            else => |state| state,
        };
    }

    fn after_extension(byte: u8) Error!State {
        return switch (byte) {
            ';' => .extension_start,
            '\r' => .size_line_feed,
            else => error.BadChunkExtension,
        };
    }

    fn count_extension_byte(self: *Decoder) Error!void {
        if (self.extension_bytes == extension_bytes_max) return error.ChunkExtensionTooLong;
        self.extension_bytes += 1;
        self.extension_bytes_total +|= 1;
        const allowed = self.data_bytes_total +| extension_bytes_excess_max;
        if (self.extension_bytes_total > allowed) return error.ChunkExtensionTooLong;
    }

    /// trailer-section = *( field-line CRLF ), with the rules of the request head's field lines.
    fn step_trailer(self: *Decoder, byte: u8) Error!void {
        switch (self.state) {
            .trailer_start => {
                switch (byte) {
                    '\r' => {
                        self.state = .last_line_feed;
                        return;
                    },
                    '\n' => return error.BareLineFeed,
                    ' ', '\t' => return error.ObsoleteFolding,
                    else => {},
                }
                if (self.trailer_lines == self.options.trailer_lines_max) {
                    return error.TrailerTooLarge;
                }
                self.trailer_lines += 1;
                self.trailer_line_start = self.trailer_bytes_kept;
                self.discards_line = false;
                self.name_len = 0;
                try self.step_trailer_name(byte);
            },
            .trailer_name => try self.step_trailer_name(byte),
            .trailer_value => {
                if (byte == '\n') return error.BareLineFeed;
                if (byte == '\r') {
                    self.state = .trailer_line_feed;
                } else if (scanner.is_control(byte)) {
                    return error.ControlCharacter;
                }
            },
            .trailer_line_feed => {
                if (byte != '\n') return error.BareCarriageReturn;
                self.state = .trailer_start;
            },
            .last_line_feed => {
                if (byte != '\n') return error.BareCarriageReturn;
                self.state = .done;
                return;
            },
            else => {},
        }
        try self.keep_trailer_byte(byte);
    }

    fn step_trailer_name(self: *Decoder, byte: u8) Error!void {
        if (byte == ':') {
            // The first byte of a line comes here too: a name must not be empty.
            if (self.state == .trailer_start) return error.BadTrailer;
            switch (trailer_fields.rule_of(self.name_buffer[0..self.name_len])) {
                .kept => {},
                .discarded => {
                    self.discards_line = true;
                    self.trailer_bytes_kept = self.trailer_line_start;
                },
                .refused => return error.ForbiddenTrailer,
            }
            self.state = .trailer_value;
            return;
        }
        if (byte == '\n') return error.BareLineFeed;
        if (scanner.is_control(byte) and byte != '\r') return error.ControlCharacter;
        if (!scanner.is_token_byte(byte)) return error.BadTrailer;
        if (self.name_len < self.name_buffer.len) {
            self.name_buffer[self.name_len] = byte;
            self.name_len += 1;
        }
        self.state = .trailer_name;
    }

    fn keep_trailer_byte(self: *Decoder, byte: u8) Error!void {
        if (self.trailer_bytes == self.options.trailer_bytes_max) return error.TrailerTooLarge;
        self.trailer_bytes += 1;
        const buffer = self.options.trailer_buffer;
        if (buffer.len == 0 or self.discards_line) return;
        if (self.trailer_bytes_kept == buffer.len) return error.TrailerTooLarge;
        buffer[self.trailer_bytes_kept] = byte;
        self.trailer_bytes_kept += 1;
    }

    comptime {
        assert(trailer_fields.name_bytes_max < std.math.maxInt(u8));
        assert(extension_bytes_max < std.math.maxInt(u16));
    }
};

const testing = std.testing;

const Outcome = struct {
    data: []const u8 = "",
    consumed: usize = 0,
    done: bool = false,
    failure: ?Error = null,
};

/// Decodes `input` in pieces of `piece` bytes through an output of `room` bytes.
fn decode(decoder: *Decoder, input: []const u8, piece: usize, room: usize, to: []u8) Outcome {
    var outcome: Outcome = .{};
    var produced: usize = 0;
    var room_buffer: [256]u8 = undefined;
    var end: usize = @min(piece, input.len);
    while (true) {
        const piece_left = input[outcome.consumed..end];
        const progress = decoder.feed(piece_left, room_buffer[0..room]) catch |err| {
            outcome.failure = err;
            return outcome;
        };
        @memcpy(to[produced..][0..progress.produced], room_buffer[0..progress.produced]);
        produced += progress.produced;
        outcome.data = to[0..produced];
        outcome.consumed += progress.consumed;
        outcome.done = progress.done;
        if (progress.done) return outcome;
        if (outcome.consumed < end) continue;
        if (end == input.len) return outcome;
        end = @min(end + piece, input.len);
    }
}

fn decode_in_place(decoder: *Decoder, bytes: []u8) Outcome {
    const progress = decoder.feed(bytes, bytes) catch |err| return .{ .failure = err };
    return .{
        .data = bytes[0..progress.produced],
        .consumed = progress.consumed,
        .done = progress.done,
    };
}

fn expect_verdict(expected: ?Error, actual: ?Error) !void {
    const expected_reason = if (expected) |err| reason_of(err) else "";
    try testing.expectEqualStrings(expected_reason, if (actual) |err| reason_of(err) else "");
}

/// Whole, byte by byte, through small outputs and in place: the verdict is the same.
fn outcome_of(input: []const u8, options: Options, to: []u8) !Outcome {
    var whole: Decoder = .init(options);
    const expected = decode(&whole, input, @max(input.len, 1), 256, to);
    for ([_][2]usize{ .{ 1, 1 }, .{ 1, 256 }, .{ 2, 3 }, .{ 7, 1 }, .{ 13, 5 } }) |sizes| {
        var buffer: [1024]u8 = undefined;
        var decoder: Decoder = .init(options);
        const outcome = decode(&decoder, input, sizes[0], sizes[1], &buffer);
        try expect_verdict(expected.failure, outcome.failure);
        if (expected.failure != null) {
            // The verdict stays.
            try testing.expectError(expected.failure.?, decoder.feed("0\r\n\r\n", &buffer));
            continue;
        }
        try testing.expectEqualStrings(expected.data, outcome.data);
        try testing.expectEqual(expected.consumed, outcome.consumed);
        try testing.expectEqual(expected.done, outcome.done);
    }
    var copy: [4096]u8 = undefined;
    if (input.len <= copy.len) {
        @memcpy(copy[0..input.len], input);
        var decoder: Decoder = .init(options);
        const outcome = decode_in_place(&decoder, copy[0..input.len]);
        try expect_verdict(expected.failure, outcome.failure);
        if (expected.failure == null) {
            try testing.expectEqualStrings(expected.data, outcome.data);
            try testing.expectEqual(expected.consumed, outcome.consumed);
        }
    }
    return expected;
}

fn expect_data(input: []const u8, data: []const u8, rest: []const u8) !void {
    errdefer std.debug.print("input: {f}\n", .{std.ascii.hexEscape(input, .lower)});
    var buffer: [1024]u8 = undefined;
    const outcome = try outcome_of(input, .{}, &buffer);
    try testing.expectEqual(null, outcome.failure);
    try testing.expect(outcome.done);
    try testing.expectEqualStrings(data, outcome.data);
    try testing.expectEqualStrings(rest, input[outcome.consumed..]);
}

fn expect_failure(failure: Error, input: []const u8) !void {
    errdefer std.debug.print("input: {f}\n", .{std.ascii.hexEscape(input, .lower)});
    var buffer: [1024]u8 = undefined;
    const outcome = try outcome_of(input, .{}, &buffer);
    try expect_verdict(failure, outcome.failure);
}

fn expect_unfinished(input: []const u8) !void {
    errdefer std.debug.print("input: {f}\n", .{std.ascii.hexEscape(input, .lower)});
    var buffer: [1024]u8 = undefined;
    const outcome = try outcome_of(input, .{}, &buffer);
    try testing.expectEqual(null, outcome.failure);
    try testing.expect(!outcome.done);
    try testing.expectEqual(input.len, outcome.consumed);
}

test "bodies" {
    try expect_data("0\r\n\r\n", "", "");
    try expect_data("5\r\nhello\r\n0\r\n\r\n", "hello", "");
    try expect_data("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world", "");
    try expect_data("5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1", "hello", "GET / HTTP/1.1");
    try expect_data("0\r\n\r\n\r\n", "", "\r\n");
    try expect_data("A\r\n0123456789\r\n0\r\n\r\n", "0123456789", "");
    try expect_data("a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n\r\n\r\n\r\n", "");
    try expect_data("0005\r\nhello\r\n000\r\n\r\n", "hello", "");
    try expect_data("0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", "hello", "");
    try expect_data("c8\r\n" ++ "x" ** 200 ++ "\r\n0\r\n\r\n", "x" ** 200, "");
}

test "bodies that go on" {
    const body = "5;a=\"b\\\"\";c\r\nhello\r\n0\r\nX-A: b\r\n\r\n";
    for (0..body.len) |len| try expect_unfinished(body[0..len]);
    try expect_data(body, "hello", "");
}

test "chunk sizes that are refused" {
    const sizes = [_][]const u8{
        "0x5",   "0X5",   "x5", "+5", "-5",   "5_0",   " 5",  "\t5",   "5 ",    "5\t",
        "5 ;a",  "",      ";a", "g",  "5g",   "5.0",   "5,5", "\x005", "5\x00", "5\x0b",
        "\"5\"", "\r\n5", "h",  "5h", "\xb5", "5\xa0",
    };
    for (sizes) |size| {
        var buffer: [64]u8 = undefined;
        const input = try std.fmt.bufPrint(&buffer, "{s}\r\nhello\r\n0\r\n\r\n", .{size});
        try expect_failure(error.BadChunkSize, input);
    }
}

test "the greatest chunk size, and one more" {
    try expect_unfinished("7fffffffffffffff\r\n");
    try expect_failure(error.ChunkSizeTooLarge, "8000000000000000\r\n");
    try expect_failure(error.ChunkSizeTooLarge, "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n");
    try expect_failure(error.ChunkSizeTooLarge, "10000000000000000\r\n");
    try expect_failure(error.ChunkSizeTooLarge, "10000000000000005\r\nhello\r\n0\r\n\r\n");
    // Sixteen digits, and one more, though its value is small.
    try expect_unfinished("0000000000000001\r\n");
    try expect_failure(error.ChunkSizeTooLarge, "00000000000000001\r\n");
}

test "lines that end in anything but CRLF" {
    try expect_failure(error.BareLineFeed, "5\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BareLineFeed, "\n5\r\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BareLineFeed, "5;a\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BareLineFeed, "5;\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BareLineFeed, "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BareLineFeed, "5\r\nhello\n0\r\n\r\n");
    try expect_failure(error.BareLineFeed, "0\r\n\n");
    try expect_failure(error.BareLineFeed, "0\r\nX-A: b\n\r\n");
    try expect_failure(error.BareLineFeed, "0\r\nX-A\n\r\n");
    try expect_failure(error.BareCarriageReturn, "5\rhello\r\n0\r\n\r\n");
    try expect_failure(error.BareCarriageReturn, "5\r\r\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BareCarriageReturn, "5;a\rb\r\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BareCarriageReturn, "5\r\nhello\r0\r\n\r\n");
    try expect_failure(error.BareCarriageReturn, "0\r\n\r0");
    try expect_failure(error.BareCarriageReturn, "0\r\nX-A: b\rc\r\n\r\n");
}

test "data that does not end where its size says" {
    try expect_failure(error.BadChunkEnd, "5\r\nhelloX\r\n0\r\n\r\n");
    try expect_failure(error.BadChunkEnd, "5\r\nhello0\r\n\r\n");
    try expect_failure(error.BadChunkEnd, "4\r\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BadChunkSize, "5\r\nhello\r\n\r\n0\r\n\r\n");
    // The CR went with the data.
    try expect_failure(error.BareLineFeed, "6\r\nhello\r\n0\r\n\r\n");
}

test "extensions by the grammar" {
    for ([_][]const u8{
        ";a",
        "; a",
        ";\t a",
        ";a=b",
        ";a=\"\"",
        ";a=\"b c\t;\\\" \xe9\"",
        ";a;b=c;d=\"e\"",
        ";signature=0123456789abcdef",
        ";a=\"\\\\\"",
    }) |extension| {
        var buffer: [128]u8 = undefined;
        const input = try std.fmt.bufPrint(&buffer, "5{s}\r\nhello\r\n0{s}\r\n\r\n", .{
            extension, extension,
        });
        try expect_data(input, "hello", "");
    }
}

test "extensions against the grammar" {
    for ([_][]const u8{
        ";",     "; ",     ";;a",    ";a;",    ";a ",       ";a =b",  ";a= b", ";a=",      ";=b",
        ";a=b ", ";a=b=c", ";a=\"b", ";a=b\"", ";a=\"b\"c", ";a\xe9", ";a=,",  ";a=\"b\\", ";(",
    }) |extension| {
        var buffer: [64]u8 = undefined;
        const input = try std.fmt.bufPrint(&buffer, "5{s}\r\nhello\r\n0\r\n\r\n", .{extension});
        try expect_failure(error.BadChunkExtension, input);
    }
    try expect_failure(error.ControlCharacter, "5;a\x00\r\nhello\r\n0\r\n\r\n");
    try expect_failure(error.ControlCharacter, "5;a=\"\x7f\"\r\nhello\r\n0\r\n\r\n");
    try expect_failure(error.ControlCharacter, "5;a=\"\\\x01\"\r\nhello\r\n0\r\n\r\n");
}

test "extensions of one chunk at the limit, and one more" {
    const longest = ";" ++ "a" ** (extension_bytes_max - 1);
    try expect_data("5" ++ longest ++ "\r\nhello\r\n0\r\n\r\n", "hello", "");
    const shorter = longest[0 .. longest.len - 1];
    try expect_data("5" ++ shorter ++ "\r\nhello\r\n0\r\n\r\n", "hello", "");
    try expect_failure(error.ChunkExtensionTooLong, "5" ++ longest ++ "a");
    try expect_failure(error.ChunkExtensionTooLong, "5" ++ longest ++ ";");
}

test "extensions of the body may exceed its data by a bound" {
    // Each chunk has one byte of data and 1,001 of extensions.
    const chunk = "1;" ++ "a" ** 1000 ++ "\r\nx\r\n";
    var output: [8]u8 = undefined;
    var decoder: Decoder = .init(.{});
    for (0..16) |_| _ = try decoder.feed(chunk, &output);
    // 16 * 1001 and 384 more are 16 KiB and the 16 bytes of data.
    try testing.expectEqual(16 * 1001, decoder.extension_bytes_total);
    _ = try decoder.feed("1;" ++ "a" ** 383, &output);
    try testing.expectEqual(16 * 1024 + 16, decoder.extension_bytes_total);
    try testing.expectError(error.ChunkExtensionTooLong, decoder.feed("a", &output));
}

test "extensions that the data outweighs have no bound" {
    const data = "x" ** 128;
    const chunk = "80;signature=" ++ "0" ** 64 ++ "\r\n" ++ data ++ "\r\n";
    var output: [data.len]u8 = undefined;
    var decoder: Decoder = .init(.{});
    for (0..2000) |_| {
        const progress = try decoder.feed(chunk, &output);
        try testing.expectEqual(chunk.len, progress.consumed);
        try testing.expectEqualStrings(data, output[0..progress.produced]);
    }
    try testing.expect(decoder.extension_bytes_total > extension_bytes_excess_max);
}

test "trailers are checked and kept" {
    const section = "X-Checksum: abc\r\nX-B:\r\nServer-Timing:\t a, \xe9 \r\n";
    const input = "5\r\nhello\r\n0\r\n" ++ section ++ "\r\nrest";
    try expect_data(input, "hello", "rest");
    var trailer_buffer: [64]u8 = undefined;
    var output: [16]u8 = undefined;
    for (1..input.len) |piece| {
        var decoder: Decoder = .init(.{ .trailer_buffer = &trailer_buffer });
        try testing.expectEqualStrings("", decoder.trailer_section());
        const outcome = decode(&decoder, input, piece, 16, &output);
        try testing.expect(outcome.done);
        try testing.expectEqualStrings(section, decoder.trailer_section());
    }
    var decoder: Decoder = .init(.{});
    try testing.expect((try decoder.feed(input, &output)).done);
    try testing.expectEqualStrings("", decoder.trailer_section());
}

test "trailers that may not stand there and decide nothing are discarded" {
    const input = "0\r\nX-A: 1\r\nContent-Type: a/b\r\nvary:*\r\nX-B: 2\r\n" ++
        "CONTENT-ENCODING: gzip\r\n\r\nrest";
    var trailer_buffer: [64]u8 = undefined;
    var output: [16]u8 = undefined;
    for (1..input.len) |piece| {
        var decoder: Decoder = .init(.{ .trailer_buffer = &trailer_buffer });
        const outcome = decode(&decoder, input, piece, 16, &output);
        try testing.expectEqual(null, outcome.failure);
        try testing.expect(outcome.done);
        try testing.expectEqualStrings("rest", input[outcome.consumed..]);
        try testing.expectEqualStrings("X-A: 1\r\nX-B: 2\r\n", decoder.trailer_section());
    }
    // They are field lines all the same, and count.
    try expect_failure(error.ControlCharacter, "0\r\nVary: \x00\r\n\r\n");
    try expect_failure(error.ObsoleteFolding, "0\r\nVary: a\r\n b\r\n\r\n");
    const lines = "0\r\n" ++ "Vary: a\r\n" ** 3 ++ "\r\n";
    for ([_]Options{ .{ .trailer_bytes_max = 26 }, .{ .trailer_lines_max = 2 } }) |options| {
        const outcome = try outcome_of(lines, options, &output);
        try expect_verdict(error.TrailerTooLarge, outcome.failure);
    }
}

test "trailer lines that are refused" {
    try expect_failure(error.BadTrailer, "0\r\n: b\r\n\r\n");
    try expect_failure(error.BadTrailer, "0\r\nX-A : b\r\n\r\n");
    try expect_failure(error.BadTrailer, "0\r\nX-A\r\n\r\n");
    try expect_failure(error.BadTrailer, "0\r\nX(A): b\r\n\r\n");
    try expect_failure(error.BadTrailer, "0\r\nX-A: b\r\nGET / HTTP/1.1\r\n\r\n");
    try expect_failure(error.ObsoleteFolding, "0\r\nX-A: b\r\n c\r\n\r\n");
    try expect_failure(error.ObsoleteFolding, "0\r\n X-A: b\r\n\r\n");
    try expect_failure(error.ControlCharacter, "0\r\nX-A: \x00\r\n\r\n");
    try expect_failure(error.ControlCharacter, "0\r\nX\x00: a\r\n\r\n");
    try expect_failure(error.ControlCharacter, "0\r\nX-A: \x7f\r\n\r\n");
}

test "trailers that take part in framing, routing and trust are refused" {
    for ([_][]const u8{
        "Content-Length", "transfer-encoding", "HOST",   "Authorization",   "Set-Cookie",
        "Cookie",         "Connection",        "Expect", "X-Forwarded-For", "Trailer",
    }) |name| {
        var buffer: [128]u8 = undefined;
        const input = try std.fmt.bufPrint(&buffer, "0\r\n{s}: 5\r\n\r\n", .{name});
        try expect_failure(error.ForbiddenTrailer, input);
    }
    // Longer than any known name, and one that begins like a forbidden one.
    try expect_data("0\r\n" ++ "x" ** 400 ++ ": 5\r\n\r\n", "", "");
    try expect_data("0\r\nContent-Length-Of-Mine: 5\r\n\r\n", "", "");
}

test "malformed chunked bodies that servers are known to accept" {
    const rest = "\r\nhello\r\n0\r\n\r\n";
    try expect_failure(error.BadChunkSize, "0x5" ++ rest);
    try expect_failure(error.BadChunkSize, "+5" ++ rest);
    try expect_failure(error.BadChunkSize, "-5" ++ rest);
    try expect_failure(error.BadChunkSize, "5 " ++ rest);
    try expect_failure(error.BareLineFeed, "5\nhello\n0\n\n");
    try expect_failure(error.BareLineFeed, "5;a\nhello\r\n0\r\n\r\n");
    try expect_failure(error.BareCarriageReturn, "5;a\rb" ++ rest);
    try expect_failure(error.BadChunkEnd, "5\r\nhello0\r\n\r\n");
    try expect_failure(error.ChunkSizeTooLarge, "10000000000000005" ++ rest);
    const trailer = "Content-Length: 5\r\n";
    try expect_failure(error.ForbiddenTrailer, "5\r\nhello\r\n0\r\n" ++ trailer ++ "\r\n");
}

test "trailer limits" {
    var output: [8]u8 = undefined;
    // "X: a\r\n" is six bytes.
    const lines = "0\r\n" ++ "X: a\r\n" ** 3 ++ "\r\n";
    for ([_]u32{ 17, 18, 19 }) |bytes_max| {
        const failure: ?Error = if (bytes_max < 18) error.TrailerTooLarge else null;
        const outcome = try outcome_of(lines, .{ .trailer_bytes_max = bytes_max }, &output);
        try expect_verdict(failure, outcome.failure);
        var trailer_buffer: [19]u8 = undefined;
        const kept: Options = .{ .trailer_buffer = trailer_buffer[0..bytes_max] };
        try expect_verdict(failure, (try outcome_of(lines, kept, &output)).failure);
    }
    for ([_]u16{ 2, 3, 4 }) |lines_max| {
        const failure: ?Error = if (lines_max < 3) error.TrailerTooLarge else null;
        const outcome = try outcome_of(lines, .{ .trailer_lines_max = lines_max }, &output);
        try expect_verdict(failure, outcome.failure);
    }
    const none: Options = .{ .trailer_lines_max = 0 };
    try testing.expectEqual(null, (try outcome_of("0\r\n\r\n", none, &output)).failure);
}

test "an output without room stops at the data alone" {
    var decoder: Decoder = .init(.{});
    const progress = try decoder.feed("5\r\nhello", &.{});
    try testing.expectEqual(3, progress.consumed);
    try testing.expectEqual(0, progress.produced);
    try testing.expectEqual(5, decoder.bytes_announced());
    var output: [2]u8 = undefined;
    const more = try decoder.feed("hello", &output);
    try testing.expectEqual(2, more.consumed);
    try testing.expectEqualStrings("he", output[0..more.produced]);
    try testing.expectEqual(5, decoder.bytes_announced());
}

test "nothing is taken after the end" {
    var decoder: Decoder = .init(.{});
    var output: [8]u8 = undefined;
    try testing.expect((try decoder.feed("0\r\n\r\n", &output)).done);
    const after = try decoder.feed("5\r\nhello", &output);
    try testing.expect(after.done);
    try testing.expectEqual(0, after.consumed);
}

test "the size that is announced" {
    var decoder: Decoder = .init(.{});
    var output: [8]u8 = undefined;
    _ = try decoder.feed("5\r\nhello\r\nff", &output);
    try testing.expectEqual(5, decoder.bytes_announced());
    _ = try decoder.feed("\r\n", &output);
    try testing.expectEqual(5 + 255, decoder.bytes_announced());
    var greatest: Decoder = .init(.{});
    _ = try greatest.feed("7fffffffffffffff\r\nhello", &output);
    try testing.expectEqual(chunk_bytes_max, greatest.bytes_announced());
}

test "mutated bodies: no panic, and one verdict however they are split" {
    var random = std.Random.DefaultPrng.init(0x9112_7_1);
    const seeds = [_][]const u8{
        "5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n",
        "1\r\nx\r\n0;a=\"b\\\"c\"\r\nX-A: b\r\nX-B: c\r\n\r\nnext",
        "00a\r\n0123456789\r\n0\r\nHost: a\r\n\r\n",
    };
    const alphabet = "\r\n\r\n\r\n0159afF;=\"\\: \tx\x00\x7f\xff-";
    for (0..5_000) |_| {
        var bytes: [96]u8 = undefined;
        const seed = seeds[random.random().uintLessThan(usize, seeds.len)];
        @memcpy(bytes[0..seed.len], seed);
        var len = seed.len;
        for (0..random.random().uintAtMost(usize, 3)) |_| {
            const at = random.random().uintLessThan(usize, len);
            const byte = alphabet[random.random().uintLessThan(usize, alphabet.len)];
            switch (random.random().uintLessThan(u8, 3)) {
                0 => bytes[at] = byte,
                1 => {
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
        var buffer: [1024]u8 = undefined;
        _ = try outcome_of(bytes[0..len], .{}, &buffer);
    }
}

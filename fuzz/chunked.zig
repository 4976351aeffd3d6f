//! Fuzz target: the decoder of the chunked coding. However input and output are cut, the same data
//! or the same refusal; data and length agree with the grammar read a second time.
//!
//! Settings: bit 0 keeps trailers, bit 1 small trailer limits, bit 2 little room for trailers.
//! Data: borrows the input for the call. Thread: one. GIL: not needed.

const std = @import("std");
const core = @import("core");
const given = @import("input.zig");
const reference = @import("reference.zig");
const chunked = core.chunked;

const expect = given.expect;
const expect_equal = given.expect_equal;

const Outcome = struct {
    data: []const u8 = "",
    consumed: usize = 0,
    done: bool = false,
    failure: ?chunked.Error = null,
};

var outputs: [5][2 * given.bytes_max]u8 = undefined;
var trailers: [2][given.bytes_max]u8 = undefined;

pub fn run(_: std.mem.Allocator, input: []const u8) void {
    const message = given.Input.of(input) orelse return;
    var decoder: chunked.Decoder = .init(options_of(message, &trailers[0]));
    const whole = decode_whole(&decoder, message.bytes);
    expect_same_split(message, whole, &decoder);
    expect_same_in_place(message, whole);
    if (whole.failure) |failure| {
        const status = chunked.status_of(failure);
        expect(status == 400 or status == 431, "a refusal has an error's status");
        expect(chunked.reason_of(failure).len > 0, "a refusal has a reason");
    } else if (whole.done) {
        expect(whole.consumed <= message.bytes.len, "no byte beyond the input");
        expect(whole.data.len <= whole.consumed, "data is no longer than its coding");
        expect(decoder.bytes_announced() == whole.data.len, "all data that was announced came");
        const text = message.bytes[0..whole.consumed];
        expect(std.mem.endsWith(u8, text, "\r\n"), "a body ends with an empty line");
        expect_trailers(&decoder);
        expect_alone(message, whole);
        expect_round_trip(whole.data);
    } else {
        expect(whole.consumed == message.bytes.len, "a body that goes on takes all");
        expect(decoder.bytes_announced() >= whole.data.len, "what came was announced");
    }
    if (message.settings & 2 == 0) expect_grammar(message.bytes, whole, &decoder);
}

fn options_of(message: given.Input, buffer: []u8) chunked.Options {
    var options: chunked.Options = .{};
    if (message.settings & 1 != 0) options.trailer_buffer = buffer;
    if (message.settings & 5 == 5) options.trailer_buffer = buffer[0 .. 1 + message.seed / 4];
    if (message.settings & 2 != 0) {
        options.trailer_bytes_max = message.seed >> 2;
        options.trailer_lines_max = message.seed >> 6;
    }
    return options;
}

fn decode_whole(decoder: *chunked.Decoder, bytes: []const u8) Outcome {
    const progress = decoder.feed(bytes, &outputs[0]) catch |err| return .{ .failure = err };
    return .{
        .data = outputs[0][0..progress.produced],
        .consumed = progress.consumed,
        .done = progress.done,
    };
}

fn decode_split(decoder: *chunked.Decoder, message: given.Input) Outcome {
    var outcome: Outcome = .{};
    var produced: usize = 0;
    var pieces = message.pieces();
    const room: usize = 1 + @as(usize, message.seed >> 4) * 9;
    while (pieces.next()) |end| {
        while (true) {
            const output = outputs[1][produced..][0..room];
            const left = message.bytes[outcome.consumed..end];
            const progress = decoder.feed(left, output) catch |err| return .{ .failure = err };
            expect(progress.produced <= progress.consumed, "no data out of nothing");
            produced += progress.produced;
            outcome.consumed += progress.consumed;
            outcome.done = progress.done;
            outcome.data = outputs[1][0..produced];
            if (progress.done) return outcome;
            if (outcome.consumed == end) break;
            expect(progress.produced == room, "decoding stops for want of room alone");
        }
    }
    return outcome;
}

fn expect_same_split(message: given.Input, whole: Outcome, decoder: *chunked.Decoder) void {
    var split: chunked.Decoder = .init(options_of(message, &trailers[1]));
    const outcome = decode_split(&split, message);
    expect_same(whole, outcome);
    if (whole.failure) |failure| {
        _ = split.feed("0\r\n\r\n", &outputs[1]) catch |err| {
            return expect(err == failure, "an error is final");
        };
        @panic("broken promise: an error is final");
    }
    expect_equal(decoder.trailer_section(), split.trailer_section(), "the same trailers");
    if (!whole.done) return;
    const after = split.feed("5\r\nhello", &outputs[1]) catch
        @panic("broken promise: nothing fails after the end");
    expect(after.done and after.consumed == 0 and after.produced == 0, "nothing after the end");
}

fn expect_same_in_place(message: given.Input, whole: Outcome) void {
    const bytes = outputs[2][0..message.bytes.len];
    @memcpy(bytes, message.bytes);
    var decoder: chunked.Decoder = .init(options_of(message, &trailers[1]));
    const progress = decoder.feed(bytes, bytes) catch |err| {
        return expect_same(whole, .{ .failure = err });
    };
    expect_same(whole, .{
        .data = bytes[0..progress.produced],
        .consumed = progress.consumed,
        .done = progress.done,
    });
}

fn expect_same(a: Outcome, b: Outcome) void {
    expect(std.meta.eql(a.failure, b.failure), "one verdict however the bytes are split");
    if (a.failure != null) return;
    expect(a.done == b.done and a.consumed == b.consumed, "one end however they are split");
    expect_equal(a.data, b.data, "one body however they are split");
}

fn expect_trailers(decoder: *const chunked.Decoder) void {
    expect(decoder.trailer_bytes <= decoder.options.trailer_bytes_max, "trailers have a limit");
    expect(decoder.trailer_lines <= decoder.options.trailer_lines_max, "and their lines");
    const kept = decoder.trailer_section().len;
    expect(kept <= decoder.trailer_bytes, "what is discarded counts");
    var rest = decoder.trailer_section();
    while (rest.len > 0) {
        const end = std.mem.indexOf(u8, rest, "\r\n") orelse
            @panic("broken promise: a trailer line ends");
        const rule = reference.trailer_rule_of(rest[0..end]);
        expect(rule != null, "a trailer is a field line");
        expect(rule == .kept, "and may stand there");
        rest = rest[end + 2 ..];
    }
}

/// What follows the body has no part in it, and nothing less is a body.
fn expect_alone(message: given.Input, whole: Outcome) void {
    const text = message.bytes[0..whole.consumed];
    var decoder: chunked.Decoder = .init(options_of(message, &trailers[1]));
    const progress = decoder.feed(text, &outputs[1]) catch
        @panic("broken promise: what follows does not matter");
    expect(progress.done and progress.consumed == text.len, "what follows does not matter");
    var shorter: chunked.Decoder = .init(options_of(message, &trailers[1]));
    const unfinished = shorter.feed(text[0 .. text.len - 1], &outputs[1]) catch
        @panic("broken promise: a body that lacks a byte is unfinished");
    expect(!unfinished.done, "a body lacks its last byte");
}

fn expect_round_trip(data: []const u8) void {
    var writer: std.Io.Writer = .fixed(&outputs[1]);
    const half = data.len / 2;
    for ([_][]const u8{ data[0..half], data[half..] }) |chunk| {
        if (chunk.len == 0) continue;
        writer.print("{x}\r\n{s}\r\n", .{ chunk.len, chunk }) catch unreachable;
    }
    writer.writeAll("0\r\n\r\n") catch unreachable;
    const text = writer.buffered();
    var decoder: chunked.Decoder = .init(.{});
    const progress = decoder.feed(text, &outputs[3]) catch
        @panic("broken promise: what was decoded can be coded again");
    expect(progress.done and progress.consumed == text.len, "coded again it ends");
    expect_equal(data, outputs[3][0..progress.produced], "coded again it is the same");
}

fn expect_grammar(bytes: []const u8, whole: Outcome, decoder: *const chunked.Decoder) void {
    var decoded: reference.Decoded = .{ .data = &outputs[3], .trailers = &outputs[4] };
    const reading = reference.read_chunked(bytes, &decoded);
    if (whole.failure) |failure| switch (failure) {
        // Limits, which the grammar has not.
        error.ChunkExtensionTooLong, error.TrailerTooLarge => {},
        else => {
            expect(reading != .valid, "the grammar refuses it, too");
            // Refused early: then no end makes it right.
            for ([_][]const u8{ "\n\r\n", "\r\n\r\n", "\r\n0\r\n\r\n", "a\r\n\r\n" }) |end| {
                @memcpy(outputs[1][0..bytes.len], bytes);
                @memcpy(outputs[1][bytes.len..][0..end.len], end);
                const extended = outputs[1][0 .. bytes.len + end.len];
                const again = reference.read_chunked(extended, &decoded);
                expect(again != .valid, "what is refused early has no right end");
            }
        },
    } else if (whole.done) {
        expect(reading == .valid and reading.valid == whole.consumed, "the grammar accepts it");
        expect_equal(outputs[3][0..decoded.data_len], whole.data, "and finds the same data");
        if (decoder.options.trailer_buffer.len == 0) return;
        const kept = outputs[4][0..decoded.trailers_len];
        expect_equal(kept, decoder.trailer_section(), "and keeps the same trailers");
    } else {
        expect(reading == .unfinished, "the grammar waits for more, too");
    }
}

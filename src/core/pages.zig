//! Memory straight from the kernel, zeroed and not touched: it costs nothing until it is written.
//!
//! For tables that are sized by a limit and mostly empty. The allocators of std fill new memory
//! with the pattern of undefined memory in ReleaseSafe, which would make all of it resident. Any
//! thread; GIL: not needed.

const std = @import("std");

const alignment: std.mem.Alignment = .fromByteUnits(std.heap.page_size_min);

/// `count` items whose bytes are all zero; freed with `free`.
pub fn alloc(comptime T: type, count: usize) error{OutOfMemory}![]T {
    const bytes = std.math.mul(usize, count, @sizeOf(T)) catch return error.OutOfMemory;
    if (bytes == 0) return &.{};
    const memory = std.heap.page_allocator.rawAlloc(bytes, alignment, @returnAddress()) orelse
        return error.OutOfMemory;
    const items: [*]T = @ptrCast(@alignCast(memory));
    return items[0..count];
}

pub fn free(items: anytype) void {
    const bytes = std.mem.sliceAsBytes(items);
    if (bytes.len == 0) return;
    std.heap.page_allocator.rawFree(@constCast(bytes), alignment, @returnAddress());
}

test "pages are zero and can be written" {
    const numbers = try alloc(u64, 5000);
    defer free(numbers);
    for (numbers) |number| try std.testing.expectEqual(0, number);
    numbers[4999] = 7;
}

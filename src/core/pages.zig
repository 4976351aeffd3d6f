//! Memory straight from the kernel, zeroed and not touched: it costs nothing until it is written.
//!
//! For tables that are sized by a limit and mostly empty. The allocators of std fill new memory
//! with the pattern of undefined memory in ReleaseSafe, which would make all of it resident. Any
//! thread; GIL: not needed.

const std = @import("std");
const builtin = @import("builtin");
/// The core's tests count what is mapped, and have mapping fail.
const kernel = if (builtin.is_test) @import("kernel_fixture.zig") else system;

const alignment: std.mem.Alignment = .fromByteUnits(std.heap.page_size_min);

/// `count` items whose bytes are all zero; freed with `free`.
pub fn alloc(comptime T: type, count: usize) error{OutOfMemory}![]T {
    const bytes = std.math.mul(usize, count, @sizeOf(T)) catch return error.OutOfMemory;
    if (bytes == 0) return &.{};
    const memory = kernel.map_pages(bytes, alignment) orelse return error.OutOfMemory;
    const items: [*]T = @ptrCast(@alignCast(memory));
    return items[0..count];
}

pub fn free(items: anytype) void {
    const bytes = std.mem.sliceAsBytes(items);
    if (bytes.len == 0) return;
    kernel.unmap_pages(@constCast(bytes), alignment);
}

const system = struct {
    fn map_pages(bytes: usize, align_to: std.mem.Alignment) ?[*]u8 {
        return std.heap.page_allocator.rawAlloc(bytes, align_to, @returnAddress());
    }

    fn unmap_pages(memory: []u8, align_to: std.mem.Alignment) void {
        std.heap.page_allocator.rawFree(memory, align_to, @returnAddress());
    }
};

test "pages are zero and can be written" {
    const numbers = try alloc(u64, 5000);
    defer free(numbers);
    for (numbers) |number| try std.testing.expectEqual(0, number);
    numbers[4999] = 7;
}

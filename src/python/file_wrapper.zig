//! `wsgi.file_wrapper` (PEP 3333, "Optional Platform-Specific File Handling"): an iterable of
//! blocks of a file-like object. GIL held. The object's own methods are called, so any file-like
//! will do.

const capi = @import("capi.zig");
const names_module = @import("names.zig");
const Object = capi.Object;

const default_block_bytes = 64 * 1024;

pub const FileWrapper = extern struct {
    head: Object,
    filelike: ?*Object,
    block: ?*Object,
};

var type_object: ?*capi.Type = null;
var keys: *const names_module.Keys = undefined;

/// The class, for the environ; a new reference.
pub fn init_type(own_keys: *const names_module.Keys) capi.Error!*Object {
    keys = own_keys;
    type_object = capi.PyType_FromSpec(&spec) orelse return error.Raised;
    return @ptrCast(@alignCast(type_object.?));
}

fn of(object: *Object) *FileWrapper {
    return @ptrCast(@alignCast(object));
}

fn create(kind: *capi.Type, arguments: *Object, _: ?*Object) callconv(.c) ?*Object {
    const count = capi.PyTuple_Size(arguments);
    if (count < 1 or count > 2) {
        capi.PyErr_SetString(capi.PyExc_TypeError, "file_wrapper takes a file and a block size");
        return null;
    }
    const self = capi.allocate(FileWrapper, kind) catch return null;
    const filelike = capi.PyTuple_GetItem(arguments, 0) orelse return null;
    self.filelike = capi.new(filelike);
    self.block = if (count == 2)
        capi.new(capi.PyTuple_GetItem(arguments, 1) orelse return null)
    else
        capi.PyLong_FromLongLong(default_block_bytes);
    if (self.block == null) {
        capi.drop(&self.head);
        return null;
    }
    return &self.head;
}

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    capi.drop_maybe(self.filelike);
    capi.drop_maybe(self.block);
    capi.deallocate(object);
}

fn iter(object: *Object) callconv(.c) ?*Object {
    return capi.new(object);
}

fn iternext(object: *Object) callconv(.c) ?*Object {
    const self = of(object);
    const end: ?*Object = null;
    const file = self.filelike.?;
    const data = capi.PyObject_CallMethodObjArgs(file, keys.read, self.block.?, end) orelse
        return null;
    // A block that is not bytes goes on, for the server to refuse.
    if (capi.is_bytes(data) and capi.bytes_of(data).len == 0) {
        capi.drop(data);
        return null;
    }
    return data;
}

fn close(object: ?*Object, _: ?*Object) callconv(.c) ?*Object {
    const filelike = of(object.?).filelike.?;
    if (capi.PyObject_HasAttr(filelike, keys.close) == 0) return capi.none();
    const end: ?*Object = null;
    return capi.PyObject_CallMethodObjArgs(filelike, keys.close, end);
}

const methods = [_]capi.MethodDef{
    capi.plain_method("close", close, "Closes the file"),
    .{},
};

const slots = [_]capi.Slot{
    capi.slot(capi.tp_new, @ptrCast(&create)),
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.tp_iter, @ptrCast(&iter)),
    capi.slot(capi.tp_iternext, @ptrCast(&iternext)),
    capi.slot(capi.tp_methods, @ptrCast(&methods)),
    capi.slot(capi.tp_doc, "file_wrapper(file[, block_size]): iterates over the file's blocks"),
    capi.slot_end,
};

const spec: capi.Spec = .{
    .name = "serve_zig._core.FileWrapper",
    .basicsize = @sizeOf(FileWrapper),
    .slots = &slots,
};

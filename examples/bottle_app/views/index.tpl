<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Bottle on serve-zig</title>
<h1>Hello, {{name}}!</h1>
<form method="post" action="/form"><input name="name"> <button>Greet</button></form>
<form method="post" action="/upload" enctype="multipart/form-data">
  <input type="file" name="file"> <button>Upload</button>
</form>
<p><a href="/visits">Visits</a> <a href="/stream?lines=20">Stream</a> <a href="/download">Download</a></p>
</html>

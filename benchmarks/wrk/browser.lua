-- The nine request fields of a browser's request after a reverse proxy has passed it on
-- (wrk adds Host, which is the first of them).

dofile(debug.getinfo(1, "S").source:match("@(.*/)") .. "report.lua")

wrk.headers["User-Agent"] =
  "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
wrk.headers["Accept"] = "application/json, text/plain, */*"
wrk.headers["Accept-Language"] = "en-GB,en;q=0.7,de;q=0.3"
wrk.headers["Accept-Encoding"] = "gzip, deflate, br, zstd"
wrk.headers["Cookie"] = "session=8f14e45fceea167a5a36dedd4bea2543; theme=dark"
wrk.headers["X-Forwarded-For"] = "203.0.113.7"
wrk.headers["X-Forwarded-Proto"] = "https"
wrk.headers["X-Request-ID"] = "01890a5d-ac96-774b-bcce-b302099a8057"

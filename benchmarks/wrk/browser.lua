-- The request of a browser as a reverse proxy passes it on: nine fields beside Host.

dofile(debug.getinfo(1, "S").source:match("@(.*/)") .. "report.lua")

wrk.headers["User-Agent"] = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 " ..
  "(KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
wrk.headers["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif," ..
  "image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
wrk.headers["Accept-Language"] = "en-GB,en-US;q=0.9,en;q=0.8,de;q=0.7"
wrk.headers["Accept-Encoding"] = "gzip, deflate, br, zstd"
wrk.headers["Cookie"] = "csrftoken=qEWFpP8sVf2u0nYJ7VYcXrH1b4Tt9mZk; " ..
  "sessionid=8zq4k1v0c3w7d9m2x5y6b8n1a4s7f0gh; consent=all; theme=dark"
wrk.headers["Referer"] = "https://www.example.com/catalogue/items?page=2&sort=price"
wrk.headers["X-Forwarded-For"] = "203.0.113.7, 198.51.100.23"
wrk.headers["X-Forwarded-Proto"] = "https"
wrk.headers["X-Request-ID"] = "01890a5d-ac96-774b-bcce-b302099a8057"

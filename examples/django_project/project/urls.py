"""Routes of the project."""

from django.contrib import admin
from django.urls import path
from notes import views

urlpatterns = [
    path("", views.index),
    path("form", views.form),
    path("upload", views.upload),
    path("visits", views.visits),
    path("stream", views.stream),
    path("download", views.download),
    path("admin/", admin.site.urls),
]
